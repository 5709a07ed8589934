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
    """Writes seven wav files of unequal length; lists the third also under another name."""
    rows = []
    for i in range(7):
        path = tmp_path / f"clip_{i}.wav"
        soundfile.write(path, voice(0.2 + 0.1 * i, f0=100 + 20 * i), 44_100, subtype="FLOAT")
        rows.append({"file": path.name, "audio": str(path), "label": i % 2, "speaker": f"s{i}"})
    return Dataset.from_list([*rows, {**rows[2], "file": "again.wav"}]).cast_column("audio", Audio(decode=False))


def in_processes(folder: Path, work: Callable[..., dict], caches: list[Path], local_ranks: list[int]) -> list[dict]:
    """Runs `work` in several processes with these ranks on their machines; returns the report of each."""
    children = []
    for rank, (cache, local_rank) in enumerate(zip(caches, local_ranks, strict=True)):
        if (child := os.fork()) == 0:
            code = 1
            try:
                init = {"init_method": f"file://{folder / 'rendezvous'}", "timeout": timedelta(seconds=60)}
                distributed.init_process_group("gloo", rank=rank, world_size=len(local_ranks), **init)
                state = SimpleNamespace(local_process_index=local_rank)
                args = SimpleNamespace(process_index=rank, world_size=len(local_ranks), distributed_state=state)
                (folder / f"{rank}.json").write_text(json.dumps(work(args, cache)))
                code = 0
            finally:
                os._exit(code)  # gloo's threads sometimes abort a process that exits normally
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(local_ranks)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(local_ranks))]


def contents(features: Dataset) -> list[list]:
    """Returns all columns of a table; of the spectrograms, the bytes in the cache."""
    plain = features.with_format(None)
    columns = [plain[name][:] for name in plain.column_names if name != "spectrograms"]
    stored = features["spectrograms"][0].stored
    paths = [stored.cache.path(key) for row in plain["spectrograms"][:] for key in stored.keys[row]]
    return [*columns, [path.read_bytes().hex() for path in paths]]


@pytest.fixture
def extracting(clips, monkeypatch):
    """Returns a function that extracts the clips and reports the result and which clips this process has read."""
    read: list[str] = []
    original = ser.data.features.read_audio

    def read_and_record(source, sampling_rate):
        read.append(Path(source["path"]).stem)
        return original(source, sampling_rate)

    monkeypatch.setattr(ser.data.features, "read_audio", read_and_record)

    def extract(args, cache):
        read.clear()
        try:
            features = extract_features(clips, tiny_feature_extractor(), cache_dir=cache, args=args)
            return {"read": read, "contents": contents(features), "place": process_ranks(args)[1]}
        except (AudioError, DataError) as error:
            return {"read": read, "error": f"{type(error).__name__}: {error}", "place": process_ranks(args)[1]}

    return extract


def test_processes_divide_the_clips_and_extract_the_same_bytes_as_one_process(clips, extracting, tmp_path):
    alone = contents(extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path / "alone"))
    together = tmp_path / "together"
    reports = in_processes(tmp_path, extracting, [together] * 3, [0, 1, 2])
    assert all(report["contents"] == json.loads(json.dumps(alone)) for report in reports)
    names = [f"clip_{i}" for i in range(7)]
    assert [report["read"] for report in reports] == [names[0::3], names[1::3], names[2::3]]
    assert contents(extract_features(clips, tiny_feature_extractor(), cache_dir=together)) == alone
    (tmp_path / "rendezvous").unlink()
    again = in_processes(tmp_path, extracting, [together] * 3, [0, 1, 2])
    assert all(report["contents"] == reports[0]["contents"] and not report["read"] for report in again)
    assert len([path for path in (together / FOLDER).rglob("*") if path.is_file()]) == 7


@pytest.mark.parametrize("kept", [[0, 2, 4, 6], [1, 2]])
def test_missing_clips_are_divided_evenly(clips, extracting, tmp_path, kept):
    """As after a run in which one process was killed."""
    cache = tmp_path / "cache"
    extract_features(clips.select(kept), tiny_feature_extractor(), cache_dir=cache)
    reports = in_processes(tmp_path, extracting, [cache] * 2, [0, 1])
    missing = [f"clip_{i}" for i in range(7) if i not in kept]
    assert [report["read"] for report in reports] == [missing[0::2], missing[1::2]]


@pytest.mark.parametrize(
    ("folders", "local_ranks", "expected"),
    [("aab", [0, 1, 0], [(0, 2), (1, 2), (0, 1)]), ("abb", [0, 0, 1], [(0, 1), (0, 2), (1, 2)])],
)
def test_processes_that_share_no_folder_extract_all_clips_on_each_machine(
    clips, extracting, tmp_path, folders, local_ranks, expected
):
    reports = in_processes(tmp_path, extracting, [tmp_path / folder for folder in folders], local_ranks)
    assert [tuple(report["place"]) for report in reports] == expected
    for folder in set(folders):
        read = [
            name for report, cache in zip(reports, folders, strict=True) if cache == folder for name in report["read"]
        ]
        assert sorted(read) == [f"clip_{i}" for i in range(7)]
    assert all(report["contents"] == reports[0]["contents"] for report in reports)


@pytest.mark.parametrize("broken", [0, 3])
def test_a_failing_process_stops_all_and_only_it_reports_the_cause(clips, extracting, tmp_path, broken):
    Path(clips[broken]["audio"]["path"]).write_bytes(b"not audio")
    reports = in_processes(tmp_path, extracting, [tmp_path / "cache"] * 2, [0, 1])
    errors = [report["error"] for report in reports]
    failing = errors.pop(broken % 2)
    assert failing.startswith(f"AudioError: clip_{broken}.wav")
    assert errors == ["DataError: Another process failed while extracting features: see its own error message."]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_before_extraction_stops_the_others(clips, tmp_path, extracting, monkeypatch, failing):
    original = ser.data.features.StoredSpectrograms.missing

    def missing(self):
        if distributed.get_rank() == failing:
            raise DataError("the disk is gone")
        return original(self)

    monkeypatch.setattr(ser.data.features.StoredSpectrograms, "missing", missing)
    reports = in_processes(tmp_path, extracting, [tmp_path / "cache"] * 2, [0, 1])
    assert reports[failing]["error"] == "DataError: the disk is gone"
    assert "Another process failed while" in reports[1 - failing]["error"]
    assert not any(report["read"] for report in reports)
