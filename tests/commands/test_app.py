"""The page (app.py) in a real browser. Needs requirements-app.txt, Playwright's Python client and Chromium."""

import csv
import itertools
import re
import shutil

import numpy as np
import pysubs2
import pytest
import soundfile
from praatio import textgrid

from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

pytest.importorskip("gradio", reason="gradio is not installed (pip install -r requirements-app.txt)")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium is installed (apt-get install chromium)", allow_module_level=True)

from ser.commands import app  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.browser]

LABELS = ["angry", "happy", "neutral", "sad"]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def url():
    model = convnet_model()
    model.config.id2label = dict(enumerate(LABELS))
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification", device="cpu"
    )
    page = app.build_page(classify)
    _, address, _ = page.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", theme=app.theme(), css=app.STYLE
    )
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(url, browser, request):
    """Opens the page; checks at the end that it sent no request to another server and is no wider than the screen."""
    context = browser.new_context(viewport=request.param, permissions=["microphone"])
    page = context.new_page()
    page.set_default_timeout(60_000)
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    page.wait_for_selector("#speech input[type=file]", state="attached")
    yield page
    assert not [address for address in requested if not address.startswith((url, "data:", "blob:"))]
    assert page.evaluate("document.documentElement.scrollWidth") <= request.param["width"]
    context.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    soundfile.write(folder / "clip.ogg", voice(1.0), 44_100)
    soundfile.write(folder / "long.flac", np.tile(voice(2.0, sampling_rate=16_000), 5), 16_000)
    soundfile.write(folder / "silence.wav", np.zeros(16_000), 16_000)
    (folder / "nonsense.mp3").write_text("this is not audio")
    return folder


def upload(page, file) -> None:
    page.set_input_files("#speech input[type=file]", file)
    page.wait_for_selector("#speech [aria-label='Clear']")
    page.click("#go")


def wait_for_answer(page) -> str:
    answer = page.locator("#answer")
    playwright.expect(answer).to_contain_text("%", timeout=60_000)
    return answer.inner_text()


def test_an_uploaded_clip_gets_its_label_and_both_images(page, files):
    upload(page, files / "clip.ogg")
    answer = wait_for_answer(page)
    assert all(label in answer for label in LABELS)
    assert sum(map(int, re.findall(r"(\d+)%", answer))) == pytest.approx(100, abs=2)
    playwright.expect(page.locator("#images img")).to_have_count(2)
    assert page.title() == "Speech emotion recognition"
    playwright.expect(page.locator("#message")).to_contain_text("0:01 of speech, classified as one clip")
    for name in ("csv", "textgrid", "srt"):
        playwright.expect(page.locator(f"#{name}")).not_to_be_visible()


def test_a_long_recording_gets_a_timeline_and_its_csv(page, files, tmp_path):
    upload(page, files / "long.flac")
    wait_for_answer(page)
    playwright.expect(page.locator("#message")).to_contain_text(
        "0:10 of speech. The result is the mean over 4 windows of 3 s; the images show where"
    )
    page.wait_for_selector("#timeline img")
    for name in ("csv", "textgrid", "srt"):
        with page.expect_download() as download:
            page.click(f"#{name}")
        download.value.save_as(tmp_path / f"timeline.{name}")
        assert download.value.suggested_filename.lower() == f"long_emotions.{name}"
    with open(tmp_path / "timeline.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["start"]), float(row["end"])) for row in rows] == [(0, 3), (3, 6), (6, 9), (7, 10)]
    assert all(sum(float(row[label]) for label in LABELS) == pytest.approx(1, abs=1e-4) for row in rows)
    tiers = textgrid.openTextgrid(str(tmp_path / "timeline.textgrid"), includeEmptyIntervals=False)
    labels = [label for label, _ in itertools.groupby(row["label"] for row in rows)]
    assert [interval.label for interval in tiers.getTier("emotion").entries] == labels
    subtitles = pysubs2.load(str(tmp_path / "timeline.srt"))
    assert [event.text for event in subtitles] == labels and subtitles[-1].end == 10_000


@pytest.mark.parametrize("page", [DESKTOP], indirect=True)
def test_a_recording_from_the_microphone_is_classified_when_it_stops(page):
    page.click("#speech [aria-label='Record audio']")
    page.click("#speech button.record-button")
    page.wait_for_timeout(1_500)
    page.click("#speech button.stop-button")
    assert any(label in wait_for_answer(page) for label in LABELS)


def test_a_missing_or_invalid_recording_gets_a_sentence_and_no_stack_trace(page, files):
    message = page.locator("#message")
    page.click("#go")
    playwright.expect(message).to_contain_text("Upload or record some speech first.")
    upload(page, files / "nonsense.mp3")
    playwright.expect(message).to_contain_text("nonsense.mp3 cannot be decoded (Format not recognised).")
    assert "Traceback" not in page.content()
    assert "%" not in page.inner_text("#answer")


def test_scores_are_cleared_when_the_next_recording_is_silent(page, files):
    upload(page, files / "clip.ogg")
    wait_for_answer(page)
    page.click("#speech [aria-label='Clear']")
    upload(page, files / "silence.wav")
    playwright.expect(page.locator("#message")).to_contain_text("silence.wav is silent from beginning to end.")
    assert "%" not in page.inner_text("#answer")
    playwright.expect(page.locator("#images img").first).not_to_be_visible()
