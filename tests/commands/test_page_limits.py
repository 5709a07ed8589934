"""Limits of the page (app.py), and the deletion of its users' files. Needs requirements-app.txt, but no browser."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile

from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from tests.helpers.processes import exit_codes, start
from tests.helpers.servers import serve_page
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

pytest.importorskip("gradio", reason="gradio is not installed (pip install -r requirements-app.txt)")
import gradio  # noqa: E402
import httpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402

import ser.models  # noqa: E402
from ser.commands import app  # noqa: E402
from ser.utils import UsageError  # noqa: E402

pytestmark = pytest.mark.slow
KEPT = ["mine.flac", "mine_emotions.TextGrid", "mine_emotions.csv", "mine_emotions.srt"]


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Starts the page with limits of 1 MB, 0.1 minutes and one waiting request; yields page, address and uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(app, "CHECK_S", 0.1)
    model = convnet_model(max_clip_s=2.0, window_s=1.0)
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification", device="cpu"
    )
    page = app.build_page(classify, max_minutes=0.1, max_queue=1)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", max_file_size="1mb")
    yield page, address.rstrip("/"), tmp_path / "uploads"
    page.close()


@pytest.mark.parametrize("names", [["valence", "arousal"], ["calm", "angry", "valence", "arousal"]])
def test_the_page_shows_dimensions(tmp_path, names):
    fields = {"id2label": dict(enumerate(names)), "dimensions": {"arousal": [1, 5], "valence": [1, 5]}}
    kind = "regression" if len(names) == 2 else None
    model = convnet_model(len(names), max_clip_s=2.0, window_s=1.0, problem_type=kind, **fields)
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification", device="cpu"
    )
    for seconds in (1.5, 4.0):
        soundfile.write(tmp_path / "a.wav", voice(seconds), 44_100)
        found = app.analyse(classify, str(tmp_path / "a.wav"), 1.0, 0.5, 60)
        assert list(found["scores"]) == names and (found["timeline"] is None) == (seconds < 2)
    highest = max(names[:-2] or names, key=found["scores"].get)
    assert f"where “{highest}” is {'clearest' if kind is None else 'highest'}" in found["message"]
    paths = app.write_files(found["rows"], tmp_path, "a.wav", len(names) - 2)
    annotated = [path for path in paths[:-1] if path is not None]
    assert Path(paths[-1]).read_text().startswith(f"start,end,label,{','.join(names)}")
    assert len(annotated) == (0 if kind else 2)
    assert all("calm" in Path(path).read_text() or "angry" in Path(path).read_text() for path in annotated)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_page_without_a_model_uses_the_shipped_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(ser.models, "ROOTS", (tmp_path,))
    monkeypatch.setenv("SER_MODEL", "")
    with pytest.raises(UsageError, match="lacks weights/ravdess: .*app.py MODEL"):
        app.main([])
    folder = tmp_path / "weights" / "ravdess"
    convnet_model().save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    built = []
    monkeypatch.setattr(app, "build_page", lambda classify, *limits: built.append(classify) or mock.Mock())
    app.main([])
    monkeypatch.setenv("SER_MODEL", str(tmp_path / "another"))
    with pytest.raises(UsageError, match="another"):
        app.main([])
    assert [classify.model.name_or_path for classify in built] == [str(folder)]


class Clock(datetime):
    """The clock of gradio, which deletes files by their age; it can be moved ahead."""

    ahead_s = 0.0

    @classmethod
    def now(cls, tz=None) -> datetime:
        return super().now(tz) + timedelta(seconds=cls.ahead_s)


def test_recordings_and_tables_are_deleted(launched, tmp_path, monkeypatch):
    monkeypatch.setattr(gradio.route_utils, "datetime", Clock)
    monkeypatch.setattr(Clock, "ahead_s", 0.0)
    _, address, uploads = launched
    soundfile.write(tmp_path / "mine.flac", np.tile(voice(1.0, sampling_rate=16_000), 4), 16_000)
    client = Client(address, verbose=False, download_files=False)
    client.predict(handle_file(tmp_path / "mine.flac"), 1.0, 1.0, api_name="/show")
    Clock.ahead_s = app.KEEP_S - 60
    time.sleep(5 * app.CHECK_S)
    assert files_in(uploads) == KEPT
    Clock.ahead_s = app.KEEP_S
    deadline = time.monotonic() + 30
    while files_in(uploads) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert files_in(uploads) == []


def test_all_files_are_deleted_when_the_page_closes(launched):
    page, address, uploads = launched
    response = httpx.post(f"{address}/gradio_api/upload", files={"files": ("mine.wav", b"voice")})
    assert files_in(uploads) == ["mine.wav"]
    assert response.json()[0].endswith("mine.wav")
    page.close()
    assert files_in(uploads) == []


ROOT = Path(__file__).parents[2]


@contextmanager
def running(checkpoint: Path, uploads: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """Runs the page in a separate process; yields the process and its address."""
    command = [sys.executable, "-u", str(ROOT / "app.py"), str(checkpoint), "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "GRADIO_TEMP_DIR": str(uploads)},
    ) as process:  # fmt: skip
        try:
            for line in process.stdout:
                if found := re.search(r"http://\S+", line):
                    yield process, found[0].rstrip("/")
                    return
            raise AssertionError("the page did not start")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    convnet_model(max_clip_s=2.0, window_s=1.0).save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    return folder


def test_all_files_are_deleted_when_the_process_is_terminated_during_a_request(checkpoint, tmp_path):
    soundfile.write(tmp_path / "mine.flac", np.tile(voice(1.0, sampling_rate=16_000), 600), 16_000)
    uploads = tmp_path / "uploads"
    with running(checkpoint, uploads) as (process, address):
        client = Client(address, verbose=False, download_files=False)
        job = client.submit(handle_file(tmp_path / "mine.flac"), 1.0, 1.0, api_name="/show")
        while not files_in(uploads):
            time.sleep(0.05)
        time.sleep(1)
        assert not job.done()
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=30)
    assert "Traceback" not in printed, printed
    assert files_in(uploads) == []


def test_all_files_are_deleted_when_the_terminal_is_closed(checkpoint, tmp_path):
    soundfile.write(tmp_path / "mine.flac", np.tile(voice(1.0, sampling_rate=16_000), 4), 16_000)
    uploads, log = tmp_path / "uploads", tmp_path / "log"
    process = start(serve_page, log, str(checkpoint), "--device", "cpu", GRADIO_TEMP_DIR=str(uploads))
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://\S+(?=\n)", log.read_text() if log.exists() else "")):
            assert process.is_alive() and time.monotonic() < deadline, "the page did not start"
            time.sleep(0.05)
        client = Client(found[0].rstrip("/"), verbose=False, download_files=False)
        client.predict(handle_file(tmp_path / "mine.flac"), 1.0, 1.0, api_name="/show")
        assert files_in(uploads) == KEPT
        os.kill(process.pid, signal.SIGHUP)
        process.join(30)
    finally:
        process.kill()
    assert process.exitcode == 0 and "Traceback" not in log.read_text(), log.read_text()
    assert files_in(uploads) == []


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield str(holder.getsockname()[1])


def test_a_taken_port_is_named(checkpoint, taken_port, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(app, "_end_as_interrupted", lambda: None)  # keeps the signal handlers of this process
    with pytest.raises(UsageError, match=f"port {taken_port} is taken or may not be used: name another with --port."):
        app.main([str(checkpoint), "--device", "cpu", "--port", taken_port])


def test_a_taken_port_from_the_environment_is_named(checkpoint, taken_port, tmp_path):
    """In a separate process, since gradio reads these variables when it is imported."""
    log, names = tmp_path / "log", {"GRADIO_SERVER_PORT": taken_port, "GRADIO_NUM_PORTS": "1"}
    assert exit_codes([start(serve_page, log, str(checkpoint), **names)]) == [1]
    printed = log.read_text()
    assert f"error: no port from {taken_port} on is free: name another with --port." in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("port", ["0", "-1", "70000", "http"])
def test_an_invalid_port_is_refused_before_the_model_is_loaded(port, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["--port", port])
    assert ended.value.code == 2
    assert f"{port!r} is not a port: give a number from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("seconds, windows", [(2.0, 1), (2.5, 3), (5.0, 5)])
def test_the_page_gives_the_scores_of_the_pipeline(launched, tmp_path, seconds, windows):
    _, address, _ = launched
    path = tmp_path / "mine.flac"
    soundfile.write(path, voice(seconds, sampling_rate=16_000), 16_000)
    classify = MaxMViTAudioClassificationPipeline(
        model=convnet_model(max_clip_s=2.0, window_s=1.0),
        feature_extractor=tiny_feature_extractor(),
        task="audio-classification",
        device="cpu",
    )
    shown = app.analyse(classify, str(path), 1.0, 1.0, 60)
    assert shown["scores"] == pytest.approx({row["label"]: row["score"] for row in classify(path)}, abs=1e-5)
    assert (shown["rows"] is None) == (windows == 1)
    expected = "classified as one clip" if windows == 1 else f"the mean over {windows} windows of 1 s"
    assert expected in shown["message"]


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_silence_and_channels_that_cancel_get_one_sentence(tmp_path, seconds):
    """Of clips, and of recordings that are classified in windows."""
    model, extractor = convnet_model(max_clip_s=2.0, window_s=1.0), tiny_feature_extractor()
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=extractor, task="audio-classification", device="cpu"
    )
    sound, path = voice(seconds, sampling_rate=16_000), str(tmp_path / "mine.wav")
    for channels, message in {
        (1.0, -1.0): "cancel each other", (1.0, -0.98): "cancel each other", (1e-5, 1e-5): "is silent from beginning",
    }.items():  # fmt: skip
        soundfile.write(path, np.outer(sound, channels), 16_000, subtype="FLOAT")
        with pytest.raises(app.AudioError, match=message):
            app.analyse(classify, path, 1.0, 1.0, 60)


def test_uploads_have_a_maximum_size(launched):
    _, address, uploads = launched
    response = httpx.post(f"{address}/gradio_api/upload", files={"files": ("long.wav", bytes(1_100_000))})
    assert response.status_code == 413
    assert files_in(uploads) == []


def test_recordings_and_the_queue_have_a_maximum_length(launched, tmp_path):
    page, address, _ = launched
    soundfile.write(tmp_path / "long.flac", np.tile(voice(1.0, sampling_rate=16_000), 7), 16_000)
    client = Client(address, verbose=False, download_files=False)
    message = client.predict(handle_file(tmp_path / "long.flac"), 3.0, 1.0, api_name="/show")[0]["value"]
    assert "long.flac lasts longer than 6 s, which is the limit" in message
    assert page._queue.max_size == 1


def test_a_deleted_recording_must_be_uploaded_again(launched, tmp_path):
    with pytest.raises(app.AudioError, match="was deleted, as all are after .* minutes. Upload it again"):
        app.analyse(None, str(tmp_path / "gone.wav"), 3.0, 1.0, 60)
