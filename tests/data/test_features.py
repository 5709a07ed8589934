"""Extraction of spectrograms: what is cached, when it is computed again, how bad clips are handled, and eviction."""

import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from datasets.utils import tqdm
from torch.utils.data import DataLoader
from transformers import Wav2Vec2FeatureExtractor

import ser.data.features
import ser.data.spectrogram_cache
import ser.files
from audio_maxmvit import AudioError
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.data.features import extract_features, rearranged
from ser.data.spectrogram_cache import FOLDER, IMAGE_PARAMETERS, clip_keys, extractor_key, pack, unpack
from tests.helpers.tiny import tiny_feature_extractor, voice

RATE = 44_100


@pytest.fixture
def clips(tmp_path) -> Dataset:
    """Writes five wav files of unequal length."""
    rows = []
    for i in range(5):
        path = tmp_path / f"clip_{i}.wav"
        soundfile.write(path, voice(0.2 + 0.1 * i, f0=100 + 20 * i), RATE, subtype="FLOAT")
        rows.append({"file": path.name, "audio": str(path), "label": i % 2, "speaker": f"s{i}"})
    return Dataset.from_list(rows).cast_column("audio", Audio(decode=False))


@pytest.fixture
def embedded(clips) -> Dataset:
    """The same clips with their bytes in the table."""
    rows = [{**row, "audio": {"bytes": Path(row["audio"]["path"]).read_bytes(), "path": None}} for row in clips]
    return Dataset.from_list(rows).cast_column("audio", Audio(decode=False))


@pytest.fixture
def no_audio(monkeypatch):
    """Returns a function that makes any later decoding of audio fail."""

    def refuse(source, sampling_rate):
        raise AssertionError("audio was read")

    return lambda: monkeypatch.setattr(ser.data.features, "read_audio", refuse)


def break_clip(clips: Dataset, row: int) -> None:
    with open(clips[row]["audio"]["path"], "wb") as file:
        file.write(b"not audio")


def spectrograms(features: Dataset) -> list[dict[str, torch.Tensor]]:
    return [row["spectrograms"][0] for row in features]


def same(one: Dataset, other: Dataset) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(spectrograms(one), spectrograms(other), strict=True)
    )


def entries(cache_dir: Path) -> list[Path]:
    """Returns the files of the cache in the order in which they were last written or used."""
    files = [path for path in (cache_dir / FOLDER).rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def make_old(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """Collects the warnings of the cache and the extraction."""
    found: list[str] = []
    for module in (ser.data.features, ser.data.spectrogram_cache):
        monkeypatch.setattr(module.logger, "warning", found.append)
    return found


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Collects the names of the files that this process decodes."""
    found: list[str] = []
    original = ser.data.features.read_audio

    def read_and_record(source, sampling_rate):
        found.append(Path(source["path"]).name)
        return original(source, sampling_rate)

    monkeypatch.setattr(ser.data.features, "read_audio", read_and_record)
    return found


# --- what is computed and kept ---


def test_spectrograms_are_those_of_the_extractor(clips, embedded, tmp_path):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, cache_dir=tmp_path / "a")
    assert features.column_names == ["file", "label", "speaker", "spectrograms", "content", "seconds"]
    assert features["file"][:] == clips["file"][:] and features["label"][:] == clips["label"][:]
    for i, row in enumerate(features):
        waveform = voice(0.2 + 0.1 * i, f0=100 + 20 * i)
        assert row["seconds"] == len(waveform) / RATE and len(row["spectrograms"]) == 1
        kept, fresh = row["spectrograms"][0], extractor.spectrograms(waveform)[0]
        assert kept.keys() == fresh.keys()
        for name, db in fresh.items():
            assert kept[name].dtype == torch.float32
            assert (kept[name] - db).abs().max() < 0.04
        torch.testing.assert_close(
            extractor.images([kept])["mel_values"], extractor.extract(waveform)["mel_values"], rtol=0, atol=1e-3
        )
    assert same(extract_features(embedded, extractor, cache_dir=tmp_path / "b"), features)


def test_packing_keeps_levels_to_a_few_hundredths_of_a_decibel():
    db = {"cqt": torch.linspace(-100, 28, 4000).view(8, 500).t(), "rms": torch.full((7,), -100.0)}
    kept = unpack(pack(db))
    assert set(kept) == set(db) and torch.equal(kept["rms"], db["rms"])
    assert (kept["cqt"] - db["cqt"]).abs().max() < 0.04
    assert kept["cqt"].max() == db["cqt"].max()
    assert len(pack(db)) < 2 * 4007 + 1000


def test_two_workers_give_the_same_features(clips, tmp_path):
    extractor = tiny_feature_extractor()
    features = [extract_features(clips, extractor, num_workers=n, cache_dir=tmp_path / str(n)) for n in (1, 2)]
    assert same(*features)
    assert features[0]["file"][:] == features[1]["file"][:]


@pytest.mark.parametrize("workers", [(1, 2), (2, 1)])
def test_a_second_run_reads_no_audio(clips, tmp_path, no_audio, workers):
    extractor = tiny_feature_extractor()
    first = extract_features(clips, extractor, num_workers=workers[0], cache_dir=tmp_path)
    no_audio()
    again = extract_features(clips, extractor, num_workers=workers[1], cache_dir=tmp_path)
    assert same(first, again)
    relabelled = clips.remove_columns("label").add_column("label", [7] * 5)
    assert extract_features(relabelled, extractor, cache_dir=tmp_path)["label"][:] == [7] * 5


def test_rows_and_columns_can_be_selected(clips, tmp_path):
    features = extract_features(clips.select([3, 1, 0]), tiny_feature_extractor(), cache_dir=tmp_path)
    assert features["file"][:] == ["clip_3.wav", "clip_1.wav", "clip_0.wav"]
    part = features.select([2]).remove_columns(["file", "speaker"])
    assert torch.equal(part[0]["spectrograms"][0]["mel"], features[2]["spectrograms"][0]["mel"])
    assert part[:0] == {name: [] for name in part.column_names}


def test_other_selections_extract_only_new_clips(clips, tmp_path, read):
    extractor = tiny_feature_extractor()
    some = extract_features(clips.select([3, 1]), extractor, cache_dir=tmp_path)
    every = extract_features(clips, extractor, cache_dir=tmp_path)
    assert len(read) == len(set(read)) == 5
    again = extract_features(clips.select([4, 3, 3, 1, 0]), extractor, cache_dir=tmp_path)
    assert len(read) == 5 and same(again, every.select([4, 3, 3, 1, 0])) and same(some, every.select([3, 1]))


def test_other_labels_leave_images_and_cache_as_they_are(clips, tmp_path, no_audio):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, cache_dir=tmp_path)
    part = features.select([3, 1, 4])
    other = rearranged(part, range(3), label=[7, 8, 9])
    assert other["label"][:] == [7, 8, 9] and other["file"][:] == part["file"][:]
    assert same(part, other)
    no_audio()
    assert same(extract_features(clips, extractor, cache_dir=tmp_path), features)


def test_equal_sound_has_an_equal_content_hash(clips, tmp_path):
    soundfile.write(tmp_path / "copy.wav", voice(0.2, f0=100), RATE, subtype="FLOAT")
    paths = [clips[0]["audio"]["path"], str(tmp_path / "copy.wav"), clips[1]["audio"]["path"]]
    clips = Dataset.from_dict({"file": paths, "audio": paths})
    first, copy, other = extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path)["content"]
    assert first == copy != other


# --- the key ---

SPECTROGRAM_VALUES = {
    "sampling_rate": 48_000, "min_length": 5000, "cqt_fmin": 40.0, "cqt_n_bins": 80, "cqt_bins_per_octave": 13,
    "cqt_hop_length": 256, "mel_n_fft": 2048, "mel_hop_length": 128, "n_mels": 64, "backend": "librosa",
    "filter_bank": "learnable", "speech_processor": Wav2Vec2FeatureExtractor().to_dict(),
}  # fmt: skip
IMAGE_VALUES = {
    "trim_db": [30.0], "trim_margin": [0.1], "level": ["full_scale"], "full_scale_db": [(-50.0, 20.0)],
    "channels": ["deltas"], "mel_representation": ["mfcc"], "n_mfcc": [13], "top_db": [60.0],
    "image_size": [32, (32, 64)], "image_mean": [[0.5] * 3], "image_std": [[0.5] * 3],
}  # fmt: skip
PARAMETERS = set(inspect.signature(MaxMViTFeatureExtractor).parameters) - {"kwargs"}


def test_every_parameter_affects_either_spectrograms_or_images():
    assert set(SPECTROGRAM_VALUES) | set(IMAGE_VALUES) == PARAMETERS
    assert set(IMAGE_VALUES) == PARAMETERS & {*IMAGE_PARAMETERS}


def test_the_key_changes_with_every_parameter_that_shapes_spectrograms():
    keys = {extractor_key(MaxMViTFeatureExtractor(**{name: value})) for name, value in SPECTROGRAM_VALUES.items()}
    assert len({*keys, extractor_key(MaxMViTFeatureExtractor())}) == len(SPECTROGRAM_VALUES) + 1


@pytest.mark.slow
def test_parameters_of_images_do_not_require_the_audio_again(clips, tmp_path, no_audio):
    first = extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path)
    no_audio()
    waveform = voice(0.5)
    for name, values in IMAGE_VALUES.items():
        for value in values:
            other = tiny_feature_extractor(**{name: value})
            assert same(extract_features(clips, other, cache_dir=tmp_path), first), name
            for one, two in zip(
                tiny_feature_extractor().spectrograms(waveform), other.spectrograms(waveform), strict=True
            ):
                assert all(torch.equal(one[part], two[part]) for part in one), name


def test_the_key_changes_with_sources_and_libraries(tmp_path, monkeypatch):
    extractor = tiny_feature_extractor()
    keys = {extractor_key(extractor)}
    for source in ser.data.spectrogram_cache.SOURCES:
        with monkeypatch.context() as patch:
            edited = tmp_path / "edited.py"
            edited.write_bytes(Path(source.__file__).read_bytes() + b"#")
            patch.setattr(source, "__file__", str(edited))
            keys.add(extractor_key(extractor))
    with monkeypatch.context() as patch:
        patch.setattr(ser.data.spectrogram_cache, "getsource", lambda function: function.__name__)
        keys.add(extractor_key(extractor))
    original = ser.data.spectrogram_cache.version
    for name in ("librosa", "soundfile", "soxr", "numpy", "torch"):
        with monkeypatch.context() as patch:
            patch.setattr(
                ser.data.spectrogram_cache, "version", lambda n, name=name: "99.1" if n == name else original(n)
            )
            keys.add(extractor_key(extractor))
    assert len(keys) == 1 + len(ser.data.spectrogram_cache.SOURCES) + 1 + 5


def test_the_key_of_a_clip_changes_with_its_audio(clips, embedded):
    keys = list(clip_keys(clips))
    assert len(set(keys)) == 5 and list(clip_keys(clips.select([2, 0]))) == [keys[2], keys[0]]
    path = clips[0]["audio"]["path"]
    os.utime(path, ns=(0, 12345))
    touched, *others = clip_keys(clips)
    assert touched != keys[0] and others == keys[1:]
    with open(path, "ab") as file:
        file.write(b"x")
    os.utime(path, ns=(0, 12345))
    assert next(clip_keys(clips)) != touched

    def flip_last_byte(row):
        contents = row["audio"]["bytes"]
        return {"audio": {"path": None, "bytes": contents[:-1] + bytes([contents[-1] ^ 1])}}

    assert not set(clip_keys(embedded)) & set(clip_keys(embedded.map(flip_last_byte)))


def test_the_key_does_not_change_by_saving(tmp_path):
    extractor = tiny_feature_extractor()
    extractor.save_pretrained(tmp_path)
    assert extractor_key(MaxMViTFeatureExtractor.from_pretrained(tmp_path)) == extractor_key(extractor)


# --- interruptions and bad clips ---


def start_extraction(clips: Dataset, cache_dir: Path, workers: int, log: Path) -> int:
    """Starts a process, in a new process group, that extracts clips in half a second each; returns its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background processes
        sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115 - open until the process ends
        os.dup2(sys.stderr.fileno(), 2)
        # The lock of progress bars is shared with the test process, which would wait forever if this process were
        # killed while holding it.
        tqdm.set_lock(threading.RLock())
        torch.set_num_threads(1)
        original = ser.data.features.read_audio
        ser.data.features.read_audio = lambda *args: (time.sleep(0.5), original(*args))[1]
        extract_features(clips, tiny_feature_extractor(), num_workers=workers, cache_dir=cache_dir)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_extraction_leaves_no_process_and_can_be_resumed(clips, tmp_path, read, number, workers):
    """SIGTERM and SIGKILL are sent to the parent only, Ctrl+C to all processes of a terminal."""
    extractor, cache_dir, log = tiny_feature_extractor(), tmp_path / "cache", tmp_path / "log"
    parent = start_extraction(clips, cache_dir, workers, log)
    wait_until(lambda: len(finished(cache_dir)) >= 2)
    children = psutil.Process(parent).children(recursive=True)
    assert len(children) == (2 if workers == 2 else 0)
    (os.killpg if number == signal.SIGINT else os.kill)(parent, number)
    code = os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1])
    message = log.read_text()
    assert "TimeoutError" not in message
    if number == signal.SIGINT:
        assert code == 1 and message.count("Traceback") == 1 and message.rstrip().endswith("KeyboardInterrupt")
    else:
        assert code == -number and "Traceback" not in message
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))

    kept = len(finished(cache_dir))
    assert 2 <= kept < 5
    later = extract_features(clips, extractor, cache_dir=cache_dir)
    assert len(read) == 5 - kept
    assert same(later, extract_features(clips, extractor, cache_dir=tmp_path / "fresh"))


def finished(cache_dir: Path) -> list[Path]:
    return [path for path in (cache_dir / FOLDER).glob("*/*/*") if not path.name.startswith(".")]


def test_an_unfinished_file_is_not_read_and_is_evicted_when_old(clips, tmp_path, monkeypatch, read):
    extractor = tiny_feature_extractor()
    monkeypatch.setattr(ser.files.os, "replace", lambda *paths: os._exit(1))
    if (child := os.fork()) == 0:
        extract_features(clips, extractor, cache_dir=tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    monkeypatch.undo()
    (unfinished,) = entries(tmp_path)
    assert len(extract_features(clips, extractor, cache_dir=tmp_path)) == 5
    assert len(finished(tmp_path)) == 5 and unfinished.exists()
    make_old(unfinished, hours=2)
    extract_features(clips, extractor, cache_dir=tmp_path, cache_gib=1e-9)
    assert not unfinished.exists() and len(finished(tmp_path)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bad", [1, 3])
def test_clips_extracted_before_a_bad_clip_are_kept(clips, tmp_path, read, bad, workers):
    path = Path(clips[bad]["audio"]["path"])
    whole = path.read_bytes()
    break_clip(clips, bad)
    with pytest.raises(AudioError, match=path.name):
        extract_features(clips, tiny_feature_extractor(), num_workers=workers, cache_dir=tmp_path)
    kept = len(entries(tmp_path))
    assert kept >= bad
    path.write_bytes(whole)
    read.clear()
    extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path)
    assert len(read) == 5 - kept and path.name in read


@pytest.mark.slow
def test_two_simultaneous_runs_can_share_the_cache(clips, tmp_path):
    logs = [tmp_path / "first", tmp_path / "second"]
    runs = [
        start_extraction(clips, tmp_path / "cache", workers, log) for workers, log in zip((1, 2), logs, strict=True)
    ]
    for run, log in zip(runs, logs, strict=True):
        assert os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) == 0, log.read_text()
    assert len(entries(tmp_path / "cache")) == 5
    kept = extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path / "cache")
    assert same(kept, extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path / "fresh"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_clip_stops_the_extraction_and_is_named(clips, tmp_path, workers):
    break_clip(clips, 2)
    with pytest.raises(AudioError, match=r"clip_2\.wav"):
        extract_features(clips, tiny_feature_extractor(), num_workers=workers, cache_dir=tmp_path)


def test_an_embedded_bad_clip_is_named(embedded, tmp_path):
    rows = [{**row, "audio": {"path": None, "bytes": b"junk"}} for row in embedded]
    with pytest.raises(AudioError, match=r"clip_0\.wav"):
        extract_features(Dataset.from_list(rows), tiny_feature_extractor(), cache_dir=tmp_path)


def test_bad_clips_are_left_out_on_request(clips, tmp_path, no_audio, warnings):
    break_clip(clips, 1)
    os.remove(clips[4]["audio"]["path"])
    extractor = tiny_feature_extractor()
    for _ in range(2):  # computed, then from the cache
        features = extract_features(clips, extractor, cache_dir=tmp_path, on_bad_audio="skip")
        assert set(clips["file"]) - set(features["file"]) == {"clip_1.wav", "clip_4.wav"}
        assert features["label"][:] == [0, 0, 1]
        assert [clip["cqt"].shape[0] for clip in spectrograms(features)] == [84] * 3
        no_audio()
    assert len(warnings) == 4 and "clip_1.wav" in warnings[2] and "clip_4.wav" in warnings[3]
    with pytest.raises(AudioError, match=r"clip_1\.wav"):
        extract_features(clips, extractor, cache_dir=tmp_path)


def test_an_extraction_without_any_good_clip_is_an_error(clips, tmp_path):
    for row in range(5):
        break_clip(clips, row)
    with pytest.raises(AudioError, match="none of the 5 clips"):
        extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path, on_bad_audio="skip")
    with pytest.raises(ValueError, match="no clips"):
        extract_features(clips.select([]), tiny_feature_extractor(), cache_dir=tmp_path)


# --- damage ---


def flip(position: float, bits: int) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        place = int(position * (len(content) - 1))
        return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]

    return damage


DAMAGE = {
    "a bit of the checksum": flip(0.0, 1),
    "a bit of the first line": lambda content: content.replace(b'"seconds": 0', b'"seconds": 1', 1),
    "a bit of the spectrograms": flip(0.6, 64),
    "the last byte": flip(1.0, 255),
    "zeroes": lambda content: content[:2000] + bytes(4096) + content[6096:],
    "truncated": lambda content: content[: len(content) // 2],
    "an extra byte": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "another file": lambda content: b"not an entry\n" * 9,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage, row",
    [
        (damage, (0, 3)[place % 2]) for place, damage in enumerate(DAMAGE.values())
    ],  # alternately the first clip and another
    ids=DAMAGE,
)
def test_a_damaged_entry_is_computed_again_with_one_warning_that_names_it(
    clips, tmp_path, warnings, read, damage, row
):
    extractor = tiny_feature_extractor()
    first = extract_features(clips, extractor, cache_dir=tmp_path)
    path = first["spectrograms"][row].stored.cache.path(list(clip_keys(clips))[row])
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    read.clear()
    again = extract_features(clips, extractor, cache_dir=tmp_path)
    assert again["seconds"][:] == first["seconds"][:] and again["content"][:] == first["content"][:]
    before = spectrograms(first.select([0]))  # read by a run that began before the damage
    assert torch.equal(before[0]["mel"], spectrograms(again)[0]["mel"])
    assert path.read_bytes() == whole and read == [f"clip_{row}.wav"]
    assert len(warnings) == 1 and str(path) in warnings[0] and f"clip_{row}.wav" in warnings[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_entry_is_verified_once_by_whichever_worker_reads_it(clips, tmp_path, workers):
    features = extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path)
    stored = features["spectrograms"][0].stored
    assert not stored._verified.any()
    read = {"batch_size": None, "collate_fn": lambda row: row["spectrograms"][0]["mel"]}
    loader = DataLoader(features, num_workers=workers, **read)
    assert len(list(loader)) == 5 and stored._verified.all()


@pytest.mark.parametrize("rows", [[1], [0, 4]])
def test_entries_deleted_during_a_run_are_computed_again(clips, tmp_path, read, rows):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, cache_dir=tmp_path)
    whole = spectrograms(features)
    keys, cache = list(clip_keys(clips)), features["spectrograms"][0].stored.cache
    for row in rows:
        cache.path(keys[row]).unlink()
    read.clear()
    for one, other in zip(whole, spectrograms(features), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert read == [f"clip_{row}.wav" for row in rows]


@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_clip_that_changes_during_a_run_is_refused(clips, tmp_path, change):
    features = extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path)
    features["spectrograms"][2].stored.cache.path(list(clip_keys(clips))[2]).unlink()
    path = clips[2]["audio"]["path"]
    if change == "gone":
        os.remove(path)
    else:
        soundfile.write(path, voice(0.4, f0=333), RATE, subtype="FLOAT")
    for _ in range(2):
        with pytest.raises(AudioError, match=r"clip_2\.wav"):
            features["spectrograms"][2][0]


def test_random_numbers_do_not_depend_on_workers_or_the_cache(clips, tmp_path):
    states = []
    for workers in (2, 1, 1):
        torch.manual_seed(3)
        extract_features(clips, tiny_feature_extractor(), num_workers=workers, cache_dir=tmp_path / str(workers))
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[1], states[2])


# --- eviction ---


def test_the_least_recently_used_entry_is_evicted_first(clips, tmp_path, no_audio):
    extractor = tiny_feature_extractor()
    used: dict[int, Path] = {}
    for row in range(3):
        extract_features(clips.select([row]), extractor, cache_dir=tmp_path)
        (used[row],) = set(entries(tmp_path)) - set(used.values())
        make_old(used[row], hours=30 - row)
    extract_features(clips.select([0]), extractor, cache_dir=tmp_path)  # the oldest, used again
    size = sum(path.stat().st_size for path in entries(tmp_path))
    extract_features(clips.select([0]), extractor, cache_dir=tmp_path, cache_gib=(size - 1) / 2**30)
    no_audio()
    assert set(entries(tmp_path)) == {used[0], used[2]}
    extract_features(clips.select([0, 2]), extractor, cache_dir=tmp_path)
    with pytest.raises(AssertionError, match="audio was read"):
        extract_features(clips.select([1]), extractor, cache_dir=tmp_path)


def test_the_cache_of_an_earlier_version_is_evicted_too(clips, tmp_path):
    part = tmp_path / FOLDER / "0123-4567"
    part.mkdir(parents=True)
    for name in ("spectrograms.arrow", "in_use"):  # the summary is missing
        (part / name).write_bytes(bytes(10**6))
        make_old(part / name, hours=100)
    assert len(extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path)) == 5
    assert len(list(part.iterdir())) == 2
    extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path, cache_gib=1e6 / 2**30)
    assert not list(part.iterdir()) and len(entries(tmp_path)) == 5


@pytest.mark.parametrize("rows", [[0, 1], [2, 3, 4]])
def test_recently_used_entries_are_kept_with_a_warning_that_names_the_option(clips, tmp_path, warnings, rows):
    extractor = tiny_feature_extractor()
    used = extract_features(clips.select(rows), extractor, cache_dir=tmp_path, cache_gib=1e-9)
    assert len(entries(tmp_path)) == len(rows) and "--feature_cache_gib" in warnings[0] and len(warnings) == 1
    for path in entries(tmp_path):
        make_old(path, hours=2)
    used["spectrograms"][0][0]  # like a run that has been training for hours
    kept = entries(tmp_path)[-1]
    other = [row for row in range(5) if row not in rows][:1]
    extract_features(clips.select(other), extractor, cache_dir=tmp_path, cache_gib=1e-9)
    assert len(entries(tmp_path)) == 2 and kept in entries(tmp_path)
    assert len(spectrograms(used)) == len(rows)  # entries that another run evicted are computed again
