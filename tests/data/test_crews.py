"""Extraction of features by several processes of a run."""

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

import ser.data.features
from audio_maxmvit import AudioError
from ser.data.features import extract_features
from ser.data.spectrogram_cache import FOLDER
from ser.distributed import process_ranks
from ser.utils import DataError
from tests.helpers.tiny import tiny_feature_extractor, voice

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


def in_processes(folder: Path, work: Callable[..., dict], caches: list[Path], numbers: list[int]) -> list[dict]:
    """What each of several processes reports; `numbers` are those that they have on their machine."""
    children = []
    for rank, (cache, place) in enumerate(zip(caches, numbers, strict=True)):
        if (child := os.fork()) == 0:
            code = 1
            try:
                init = {"init_method": f"file://{folder / 'meeting'}", "timeout": timedelta(seconds=60)}
                distributed.init_process_group("gloo", rank=rank, world_size=len(numbers), **init)
                state = SimpleNamespace(local_process_index=place)
                args = SimpleNamespace(process_index=rank, world_size=len(numbers), distributed_state=state)
                (folder / f"{rank}.json").write_text(json.dumps(work(args, cache)))
                code = 0
            finally:
                os._exit(code)  # gloo's threads now and then abort a process that takes itself down in order
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(numbers)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(numbers))]


def contents(features: Dataset) -> list[list]:
    """Every column of a table, of its spectrograms the bytes that are kept."""
    plain = features.with_format(None)
    columns = [plain[name][:] for name in plain.column_names if name != "spectrograms"]
    stored = features["spectrograms"][0].stored
    paths = [stored.cache.path(key) for row in plain["spectrograms"][:] for key in stored.keys[row]]
    return [*columns, [path.read_bytes().hex() for path in paths]]


@pytest.fixture
def extracting(clips, monkeypatch):
    """The clips extracted by all processes, with which of them this process has read."""
    read: list[str] = []
    honest = ser.data.features.read_audio

    def noting(source, sampling_rate):
        read.append(Path(source["path"]).stem)
        return honest(source, sampling_rate)

    monkeypatch.setattr(ser.data.features, "read_audio", noting)

    def extract(args, cache):
        read.clear()
        try:
            features = extract_features(clips, tiny_feature_extractor(), cache_dir=cache, args=args)
            return {"read": read, "contents": contents(features), "place": process_ranks(args)[1]}
        except (AudioError, DataError) as error:
            return {"read": read, "error": f"{type(error).__name__}: {error}", "place": process_ranks(args)[1]}

    return extract


def test_processes_extract_byte_for_byte_what_one_does_each_its_part(clips, extracting, tmp_path):
    alone = contents(extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path / "alone"))
    together = tmp_path / "together"
    reports = in_processes(tmp_path, extracting, [together] * 3, [0, 1, 2])
    assert all(report["contents"] == json.loads(json.dumps(alone)) for report in reports)
    names = [f"clip_{i}" for i in range(7)]
    assert [report["read"] for report in reports] == [names[0::3], names[1::3], names[2::3]]
    assert contents(extract_features(clips, tiny_feature_extractor(), cache_dir=together)) == alone
    (tmp_path / "meeting").unlink()
    again = in_processes(tmp_path, extracting, [together] * 3, [0, 1, 2])
    assert all(report["contents"] == reports[0]["contents"] and not report["read"] for report in again)
    assert len([path for path in (together / FOLDER).rglob("*") if path.is_file()]) == 7


@pytest.mark.parametrize("kept", [[0, 2, 4, 6], [1, 2]])
def test_what_is_missing_is_divided_evenly(clips, extracting, tmp_path, kept):
    """As after a run of which one process was killed."""
    cache = tmp_path / "cache"
    extract_features(clips.select(kept), tiny_feature_extractor(), cache_dir=cache)
    reports = in_processes(tmp_path, extracting, [cache] * 2, [0, 1])
    missing = [f"clip_{i}" for i in range(7) if i not in kept]
    assert [report["read"] for report in reports] == [missing[0::2], missing[1::2]]


@pytest.mark.parametrize(
    ("folders", "machine", "expected"),
    [("aab", [0, 1, 0], [(0, 2), (1, 2), (0, 1)]), ("abb", [0, 0, 1], [(0, 1), (0, 2), (1, 2)])],
)
def test_machines_that_share_no_folder_each_extract_all_among_their_own(
    clips, extracting, tmp_path, folders, machine, expected
):
    reports = in_processes(tmp_path, extracting, [tmp_path / folder for folder in folders], machine)
    assert [tuple(report["place"]) for report in reports] == expected
    for folder in set(folders):
        read = [name for report, own in zip(reports, folders, strict=True) if own == folder for name in report["read"]]
        assert sorted(read) == [f"clip_{i}" for i in range(7)]
    assert all(report["contents"] == reports[0]["contents"] for report in reports)


@pytest.mark.parametrize("broken", [0, 3])
def test_one_that_fails_stops_all_and_alone_says_why(clips, extracting, tmp_path, broken):
    Path(clips[broken]["audio"]["path"]).write_bytes(b"not audio")
    reports = in_processes(tmp_path, extracting, [tmp_path / "cache"] * 2, [0, 1])
    errors = [report["error"] for report in reports]
    failing = errors.pop(broken % 2)
    assert failing.startswith(f"AudioError: clip_{broken}.wav")
    assert errors == ["DataError: Another process failed while extracting features: see its own error message."]


@pytest.mark.parametrize("lost", [0, 1])
def test_one_that_fails_before_the_others_start_stops_them(clips, tmp_path, extracting, monkeypatch, lost):
    honest = ser.data.features.StoredSpectrograms.missing

    def missing(self):
        if distributed.get_rank() == lost:
            raise DataError("the disk is gone")
        return honest(self)

    monkeypatch.setattr(ser.data.features.StoredSpectrograms, "missing", missing)
    reports = in_processes(tmp_path, extracting, [tmp_path / "cache"] * 2, [0, 1])
    assert reports[lost]["error"] == "DataError: the disk is gone"
    assert "Another process failed while" in reports[1 - lost]["error"]
    assert not any(report["read"] for report in reports)
