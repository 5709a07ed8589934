"""Processes that share the extraction of features."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from datasets import Audio, Dataset
from torch import distributed

import ser.features
from audio_maxmvit import AudioError
from ser.errors import DataError
from ser.features import extract_features
from ser.processes import Crew
from ser.spectrogram_cache import FOLDER, cache_folder
from tests.tiny import tiny_feature_extractor, voice

pytestmark = pytest.mark.slow


@pytest.fixture
def clips(tmp_path) -> Dataset:
    """Seven wav files of unequal length, and the third again under another name."""
    rows = []
    for i in range(7):
        path = tmp_path / f"clip_{i}.wav"
        soundfile.write(path, voice(0.2 + 0.1 * i, f0=100 + 20 * i), 44_100, subtype="FLOAT")
        rows.append({"file": path.name, "audio": str(path), "label": i % 2, "speaker": f"s{i}"})
    return Dataset.from_list([*rows, {**rows[2], "file": "again.wav"}]).cast_column("audio", Audio(decode=False))


def in_processes(folder: Path, work: Callable[[Crew], dict], caches: list[Path], places: list[int]) -> list[dict]:
    """What each of several processes reports; `places` are their numbers on their machine."""
    children = []
    for rank, (cache, place) in enumerate(zip(caches, places, strict=True)):
        if (child := os.fork()) == 0:
            code = 1
            try:
                init = {"init_method": f"file://{folder / 'meeting'}", "timeout": timedelta(seconds=60)}
                distributed.init_process_group("gloo", rank=rank, world_size=len(places), **init)
                state = SimpleNamespace(local_process_index=place)
                args = SimpleNamespace(process_index=rank, world_size=len(places), distributed_state=state)
                crew = Crew(args, cache_folder(cache))
                (folder / f"{rank}.json").write_text(json.dumps(work(crew, cache)))
                code = 0
            finally:
                os._exit(code)  # gloo's threads now and then abort a process that takes itself down in order
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(places)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(places))]


def contents(features: Dataset) -> list[list]:
    """Every column of a table, of its spectrograms the bytes that are kept."""
    plain = features.with_format(None)
    (stored,) = {id(versions.stored): versions.stored for versions in features["spectrograms"]}.values()
    kept = stored._table.data.column("spectrograms")
    columns = [plain[name][:] for name in plain.column_names if name != "spectrograms"]
    return [*columns, [[kept[row].as_py().hex() for row in rows] for rows in plain["spectrograms"][:]]]


@pytest.fixture
def extracting(clips, monkeypatch):
    """Work of a crew: the clips extracted, with which of them this process has read."""
    read: list[str] = []
    honest = ser.features.read_audio

    def noting(source, sampling_rate):
        read.append(Path(source["path"]).stem)
        return honest(source, sampling_rate)

    monkeypatch.setattr(ser.features, "read_audio", noting)

    def extract(crew, cache):
        read.clear()
        try:
            features = extract_features(clips, tiny_feature_extractor(), cache_dir=cache, crew=crew)
            return {"read": read, "contents": contents(features), "count": crew.count}
        except (AudioError, DataError) as error:
            return {"read": read, "error": f"{type(error).__name__}: {error}", "count": crew.count}

    return extract


def test_a_crew_extracts_byte_for_byte_what_one_process_does_each_its_share(clips, extracting, tmp_path):
    alone = contents(extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path / "alone"))
    together = tmp_path / "together"
    reports = in_processes(tmp_path, extracting, [together] * 3, [0, 1, 2])
    assert all(report["contents"] == json.loads(json.dumps(alone)) for report in reports)
    names = [f"clip_{i}" for i in range(7)]
    assert [report["read"] for report in reports] == [names[:2], names[2:4], names[4:]]
    assert contents(extract_features(clips, tiny_feature_extractor(), cache_dir=together)) == alone
    (tmp_path / "meeting").unlink()
    again = in_processes(tmp_path, extracting, [together] * 3, [0, 1, 2])
    assert all(report["contents"] == reports[0]["contents"] and not report["read"] for report in again)
    assert sorted(path.suffix for path in (together / FOLDER).iterdir()) == ["", ".lock", ".lock"]


def test_machines_that_share_no_folder_each_extract_all_among_their_own(clips, extracting, tmp_path):
    caches = [tmp_path / "first", tmp_path / "first", tmp_path / "second"]
    reports = in_processes(tmp_path, extracting, caches, [0, 1, 0])
    assert [report["count"] for report in reports] == [2, 2, 1]
    assert [len(report["read"]) for report in reports] == [3, 4, 7]
    assert all(report["contents"] == reports[0]["contents"] for report in reports)


@pytest.mark.parametrize("broken", [0, 6])
def test_one_that_fails_stops_all_and_alone_says_why(clips, extracting, tmp_path, broken):
    Path(clips[broken]["audio"]["path"]).write_bytes(b"not audio")
    reports = in_processes(tmp_path, extracting, [tmp_path / "cache"] * 2, [0, 1])
    errors = [report["error"] for report in reports]
    failing = errors.pop(1 if broken else 0)
    assert failing.startswith(f"AudioError: clip_{broken}.wav")
    assert errors == ["DataError: Another process could not finish extracting features; its own message says why."]


def test_one_that_leads_and_fails_before_the_others_start_stops_them(clips, tmp_path, extracting, monkeypatch):
    def lost(*args):
        raise DataError("the disk is gone")

    monkeypatch.setattr(ser.features.SpectrogramCache, "find_or_write", lost)
    reports = in_processes(tmp_path, extracting, [tmp_path / "cache"] * 2, [0, 1])
    assert reports[0]["error"] == "DataError: the disk is gone"
    assert "Another process could not finish" in reports[1]["error"]
