"""The page without a server (web/) in a real browser. Needs the files that `python -m web.build` makes, Playwright's
Python client and Chromium."""

import base64
import csv
import functools
import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_maxmvit import read_audio
from ser.data.corpora.demo import SAMPLING_RATE, synthesize_clip
from tests.helpers.servers import Folder, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install -r requirements-export.txt)")
WEB = Path(__file__).parents[2] / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium is installed (apt-get install chromium)", allow_module_level=True)
if not (WEB / "vendor" / "models.json").exists():
    pytest.skip("web/vendor is empty (python -m web.build)", allow_module_level=True)

import onnx_ser  # noqa: E402

MODELS = json.loads((WEB / "vendor" / "models.json").read_text(encoding="utf-8"))

pytestmark = [pytest.mark.slow, pytest.mark.browser]

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
WAIT_MS = 60_000


class IsolatedFolder(Folder):
    """Sends the headers with which a page may use threads."""

    def end_headers(self) -> None:
        for name, value in ISOLATED.items():
            self.send_header(name, value)
        super().end_headers()


@pytest.fixture(scope="module")
def recognizer():
    """Returns a recognizer with the first model of the page."""
    return onnx_ser.Recognizer(str(WEB / "vendor" / f"{MODELS[0]['name']}.onnx"), threads=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes speech at 44.1 kHz, which the browser need not resample: real speech if RAVDESS is available."""
    folder = tmp_path_factory.mktemp("files")
    if "SER_RAVDESS_DIR" in os.environ:
        clips = sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))
        speech = np.concatenate([read_audio(clip, 44_100) for clip in clips[4:1440:103]])
    else:
        voices = [synthesize_clip(("angry", "sad")[seed % 2], seed, 0) for seed in range(30)]
        speech = read_audio({"array": np.concatenate(voices), "sampling_rate": SAMPLING_RATE}, 44_100)
    assert len(speech) > 43 * 44_100
    for name, samples in {
        "clip": speech[: 5 * 44_100],
        "long": speech[: 43 * 44_100],
        "stereo": np.stack([speech[:66_150], 0.2 * speech[66_150:132_300]], axis=1),
        "silence": np.zeros(88_200),
        "cancelling": np.stack([speech[:88_200], -speech[:88_200]], axis=1),
        "almost": np.stack([speech[88_200:176_400], -0.98 * speech[88_200:176_400]], axis=1),
        "pause": np.concatenate([speech[: 6 * 44_100], np.zeros(5 * 44_100), speech[6 * 44_100 : 7 * 44_100]]),
        "note": speech[: 16 * 44_100],
        "blink": speech[:2_000],
    }.items():
        soundfile.write(folder / f"{name}.wav", samples, 44_100, subtype="PCM_16")
    (folder / "nonsense.mp3").write_text("this is not audio")
    return folder


@pytest.fixture(scope="module")
def addresses():
    with (
        serving(functools.partial(Folder, directory=WEB)) as plain,
        serving(functools.partial(IsolatedFolder, directory=WEB)) as isolated,
    ):
        yield {"plain": plain, "isolated": isolated}


@pytest.fixture(params=["plain", "isolated"])
def server(request, addresses):
    """Returns the address of the page and the number of threads that it may use."""
    return addresses[request.param], 1 if request.param == "plain" else min(4, os.cpu_count() or 1)


@pytest.fixture(scope="module")
def browse(files):
    """Returns a function that opens the page in a browser whose microphone plays a file, and records its requests."""
    with playwright.sync_playwright() as driver:
        browsers = {}

        def open_page(url: str, recording: str = "long.wav", size=DESKTOP, **kwargs):
            if recording not in browsers:
                microphone = f"--use-file-for-fake-audio-capture={files / recording}"
                browsers[recording] = driver.chromium.launch(
                    executable_path=CHROMIUM, args=[*FLAGS.split(), microphone]
                )
            context = browsers[recording].new_context(viewport=size, permissions=["microphone"], **kwargs)
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)
            page.requests, page.errors = [], []
            page.on("request", lambda request: page.requests.append((request.method, request.url)))
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.goto(url)
            playwright.expect(page.locator("#status")).to_have_text("Ready.", timeout=WAIT_MS)
            return page

        yield open_page
        for browser in browsers.values():
            browser.close()


@pytest.fixture(scope="module")
def opened(browse):
    """Returns a function that opens each address once: tests of files share a page, which must work repeatedly."""
    return functools.cache(browse)


@pytest.fixture
def page(opened, server):
    page = opened(server[0])
    yield page
    assert_nothing_is_sent(page, server[0])


def assert_nothing_is_sent(page, url: str) -> None:
    """Checks that the page fetched only its own files, sent nothing, fits the screen and raised no error."""
    assert {method for method, _ in page.requests} == {"GET"}
    assert not [address for _, address in page.requests if not address.startswith((url, "data:", "blob:"))]
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.errors == []


def choose(page, path: Path, status: str) -> None:
    page.set_input_files("#file", path)
    playwright.expect(page.locator("#status")).to_contain_text(status, timeout=WAIT_MS)


def scores(page) -> list[float]:
    """Returns the unrounded scores that the page shows at one moment, if any."""
    shown = page.locator("#scores li").evaluate_all("rows => rows.map(row => row.dataset.score)")
    return [float(text) for text in shown if text]


def wait_for_timeline(page, rows: int) -> None:
    deadline = time.monotonic() + WAIT_MS / 1000
    while int(page.locator("#timeline").get_attribute("data-rows") or 0) < rows:
        assert time.monotonic() < deadline, page.inner_text("#status")
        page.wait_for_timeout(50)


def wait_for_scores(page) -> list[float]:
    """Returns the scores of the newest window that is not silent: between two clips, one may be."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while not (found := scores(page)):
        assert time.monotonic() < deadline, page.inner_text("#status")
        page.wait_for_timeout(50)
    return found


def is_drawn(page, selector: str) -> bool:
    """Returns whether a canvas shows an image rather than text on one colour."""
    script = """canvas => {
        const {width, height} = canvas;
        const {data} = canvas.getContext("2d").getImageData(width / 4, height / 4, width / 2, height / 2);
        return new Set(new Uint32Array(data.buffer)).size;
    }"""
    return page.locator(selector).evaluate(script) > 30


def test_a_file_gets_the_same_probabilities_as_in_python(page, server, files, recognizer):
    assert page.title() == "Speech emotion recognition"
    assert page.locator("body").get_attribute("data-threads") == str(server[1])
    for name, seconds in (("clip", "0:05"), ("stereo", "0:02")):
        choose(page, files / f"{name}.wav", f"{name}.wav: {seconds} of speech, classified as one clip.")
        (window,) = recognizer.answer(str(files / f"{name}.wav"), None, None)
        np.testing.assert_allclose(scores(page), window["scores"], atol=1e-3)
        assert page.inner_text("#best") == recognizer.labels[int(window["scores"].argmax())]
        playwright.expect(page.locator("#along")).to_be_hidden()  # a single clip has no timeline
    assert sum(scores(page)) == pytest.approx(1, abs=1e-5)
    assert is_drawn(page, "#images canvas >> nth=0") and is_drawn(page, "#images canvas >> nth=1")


@pytest.mark.parametrize(
    "server, name, windows, status",
    [
        ("plain", "note", 8, "0:16 of speech. The result is the mean over 8 windows of 2 s."),
        ("plain", "pause", 6, "0:12 of speech. The result is the mean over 4 windows of 2 s (2 more are silent)."),
        ("isolated", "long", 22, "0:43 of speech. The result is the mean over"),
    ],
    indirect=["server"],
)
def test_a_recording_longer_than_the_training_clips_gets_the_mean_of_its_windows(
    page, files, recognizer, name, windows, status
):
    choose(page, files / f"{name}.wav", status)
    assert page.locator("#timeline").get_attribute("data-rows") == str(windows)
    expected = recognizer.answer(str(files / f"{name}.wav"), None, None)
    classified = [window["scores"] for window in expected if "scores" in window]
    assert len(expected) == windows
    mean = np.mean(classified, axis=0)
    np.testing.assert_allclose(scores(page), mean, atol=1e-3)
    assert page.inner_text("#best") == recognizer.labels[int(mean.argmax())]
    labels = [
        recognizer.labels[int(window["scores"].argmax())] if "scores" in window else "silence" for window in expected
    ]
    with page.expect_download() as download:
        page.click("#downloads button[data-suffix=csv]")
    assert download.value.suggested_filename == f"{name}_emotions.csv"
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [row["label"] for row in rows] == labels
    assert [float(row["end"]) for row in rows] == [pytest.approx(window["end"], abs=1e-3) for window in expected]
    with page.expect_download() as download:
        page.click("#downloads button[data-suffix=srt]")
    subtitles = [label for label, _ in itertools.groupby(labels) if label != "silence"]
    assert download.value.path().read_text().splitlines()[2::4] == subtitles


@pytest.mark.parametrize("server", ["plain"], indirect=True)
@pytest.mark.parametrize("size, scheme", [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_the_timeline_grows_during_a_recording_which_is_classified_whole_at_its_end(
    browse, server, files, size, scheme
):
    page = browse(server[0], size=size, color_scheme=scheme)
    for _ in range(3 + (len(MODELS) > 1)):  # by keyboard: the theme, the model, the file, the microphone
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#speak")).to_have_text("Stop")
    playwright.expect(page.locator("#status")).to_contain_text("Recording", timeout=WAIT_MS)
    wait_for_timeline(page, 7)
    assert sum(wait_for_scores(page)) == pytest.approx(1, abs=1e-5)
    assert is_drawn(page, "#images canvas >> nth=0")
    page.keyboard.press("Enter")
    status = re.compile(r"Your recording: 0:\d\d of speech")
    playwright.expect(page.locator("#status")).to_have_text(status, timeout=WAIT_MS)
    assert sum(scores(page)) == pytest.approx(1, abs=1e-5)
    assert_nothing_is_sent(page, server[0])
    page.context.close()


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_silence_is_shown_during_a_silent_recording(browse, server):
    page = browse(server[0], recording="silence.wav")
    page.click("#speak")
    playwright.expect(page.locator("#status")).to_contain_text("Silence.", timeout=WAIT_MS)
    wait_for_timeline(page, 3)
    assert page.inner_text("#best") == "silence" and scores(page) == []
    page.click("#speak")
    playwright.expect(page.locator("#status")).to_have_text("Your recording is silent from beginning to end.")
    assert_nothing_is_sent(page, server[0])
    page.context.close()


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_a_recording_that_cannot_be_classified_gets_a_message_and_the_last_scores_are_removed(page, files):
    for name, message in (
        ("nonsense.mp3", "nonsense.mp3 cannot be decoded by this browser"),
        ("silence.wav", "silence.wav is silent from beginning to end."),
        ("blink.wav", "blink.wav is shorter than 0.1 seconds."),
        ("almost.wav", "The channels of almost.wav cancel each other out"),
        ("cancelling.wav", "The channels of cancelling.wav cancel each other out: invert one of them"),
    ):
        choose(page, files / "clip.wav", "classified as one clip")
        assert len(scores(page)) == 8
        choose(page, files / name, message)
        assert scores(page) == [] and page.inner_text("#best") == "No result yet"
        playwright.expect(page.locator("#images figure").first).to_be_hidden()
        playwright.expect(page.locator("#along")).to_be_hidden()


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_a_file_can_be_dropped_and_the_theme_changed(page, files):
    dropped = page.evaluate_handle(
        """text => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "dropped.wav"));
            return transfer;
        }""",
        base64.b64encode((files / "stereo.wav").read_bytes()).decode(),
    )
    page.dispatch_event("#answer", "drop", {"dataTransfer": dropped})
    playwright.expect(page.locator("#status")).to_contain_text("dropped.wav: 0:02 of speech", timeout=WAIT_MS)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@pytest.mark.skipif(len(MODELS) < 2, reason="web/vendor holds one model (python -m web.build MODEL MODEL)")
@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_another_model_can_be_chosen_and_the_first_one_again(page, files, recognizer):
    names = [f"{model['name']} ({model['megabytes']} MB)" for model in MODELS]
    assert page.locator("#model option").all_inner_texts() == names
    assert [url for _, url in page.requests if url.endswith(".onnx")][0].endswith(f"/{MODELS[0]['name']}.onnx")
    other = onnx_ser.Recognizer(str(WEB / "vendor" / f"{MODELS[1]['name']}.onnx"), threads=1)
    found = []
    for index, expected in ((1, other), (0, recognizer)):
        page.select_option("#model", str(index))
        playwright.expect(page.locator("#status")).to_have_text("Ready.", timeout=WAIT_MS)
        assert scores(page) == []
        choose(page, files / "clip.wav", "clip.wav: 0:05 of speech")
        (window,) = expected.answer(str(files / "clip.wav"), None, None)
        np.testing.assert_allclose(scores(page), window["scores"], atol=1e-3)
        assert page.inner_text("#best") == expected.labels[int(window["scores"].argmax())]
        assert page.locator("#images figure").count() == len(MODELS[index]["images"])
        found.append(scores(page))
    assert np.abs(np.subtract(*found)).max() > 0.01


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_a_page_without_models_says_how_to_make_them(opened, server, tmp_path):
    for path in WEB.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    page = opened(server[0]).context.new_page()
    with serving(functools.partial(Folder, directory=tmp_path)) as url:
        page.goto(url)
        playwright.expect(page.locator("#status")).to_have_text(
            "The models are missing in the folder vendor: run python -m web.build.", timeout=WAIT_MS
        )
        playwright.expect(page.locator("#speak")).to_be_disabled()
