"""Extracting once: what is cached, when it is computed again, what happens to bad clips, and how batches are made."""

import inspect
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from torch.utils.data import DataLoader

import ser.features
from audio_maxmvit import AudioError
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.batches import PairCollator
from ser.features import cache_key, extract_features, relabel
from tests.tiny import tiny_feature_extractor, voice

IMAGES = ("cqt_values", "mel_values")
RATE = 44_100


@pytest.fixture
def clips(tmp_path) -> Dataset:
    """Five wav files of unequal length."""
    rows = []
    for i in range(5):
        path = tmp_path / f"clip_{i}.wav"
        soundfile.write(path, voice(0.2 + 0.1 * i, f0=100 + 20 * i), RATE, subtype="FLOAT")
        rows.append({"file": path.name, "audio": str(path), "label": i % 2, "speaker": f"s{i}"})
    return Dataset.from_list(rows).cast_column("audio", Audio(decode=False))


@pytest.fixture
def embedded(clips) -> Dataset:
    """The same with the bytes in the table."""
    rows = [{**row, "audio": {"bytes": Path(row["audio"]["path"]).read_bytes(), "path": None}} for row in clips]
    return Dataset.from_list(rows).cast_column("audio", Audio(decode=False))


@pytest.fixture
def no_audio(monkeypatch):
    """From here on nothing may be decoded."""

    def refuse(source, sampling_rate):
        raise AssertionError("audio was read")

    return lambda: monkeypatch.setattr(ser.features, "read_audio", refuse)


def break_clip(clips: Dataset, row: int) -> None:
    with open(clips[row]["audio"]["path"], "wb") as file:
        file.write(b"not audio")


def same_images(one: Dataset, other: Dataset) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in IMAGES
    )


# --- what is computed and kept ---


def test_images_are_those_of_the_extractor(clips, embedded, tmp_path):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, cache_dir=tmp_path / "a")
    assert features.column_names == ["file", "label", "speaker", *IMAGES, "content"]
    assert features["file"][:] == clips["file"][:] and features["label"][:] == clips["label"][:]
    for i, row in enumerate(features):
        for name, images in extractor.extract(voice(0.2 + 0.1 * i, f0=100 + 20 * i)).items():
            assert row[name].shape == (1, 64, 64) and row[name].dtype == torch.float16
            torch.testing.assert_close(row[name].float(), images[0], rtol=0, atol=1e-3)
    assert same_images(extract_features(embedded, extractor, cache_dir=tmp_path / "b"), features)


def test_two_workers_do_the_same(clips, tmp_path):
    extractor = tiny_feature_extractor()
    features = [extract_features(clips, extractor, num_workers=n, cache_dir=tmp_path / str(n)) for n in (1, 2)]
    assert same_images(*features)
    assert features[0]["file"][:] == features[1]["file"][:]


@pytest.mark.parametrize("workers", [(1, 2), (2, 1)])
def test_second_start_needs_no_audio(clips, tmp_path, no_audio, workers):
    extractor = tiny_feature_extractor()
    first = extract_features(clips, extractor, num_workers=workers[0], cache_dir=tmp_path)
    no_audio()
    again = extract_features(clips, extractor, num_workers=workers[1], cache_dir=tmp_path)
    assert same_images(first, again)
    relabelled = clips.remove_columns("label").add_column("label", [7] * 5)
    assert extract_features(relabelled, extractor, cache_dir=tmp_path)["label"][:] == [7] * 5


def test_parts_can_be_selected(clips, tmp_path):
    features = extract_features(clips.select([3, 1, 0]), tiny_feature_extractor(), cache_dir=tmp_path)
    assert features["file"][:] == ["clip_3.wav", "clip_1.wav", "clip_0.wav"]
    part = features.select([2]).remove_columns(["file", "speaker"])
    assert torch.equal(part[0]["mel_values"], features[2]["mel_values"])
    assert part[:0] == {name: [] for name in part.column_names}


def test_other_labels_leave_images_and_cache_as_they_are(clips, tmp_path, no_audio):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, cache_dir=tmp_path)
    part = features.select([3, 1, 4])
    other = relabel(part, [7, 8, 9])
    assert other["label"][:] == [7, 8, 9] and other["file"][:] == part["file"][:]
    assert same_images(part, other)
    no_audio()
    assert same_images(extract_features(clips, extractor, cache_dir=tmp_path), features)


def test_content_tells_equal_sound(clips, tmp_path):
    soundfile.write(tmp_path / "copy.wav", voice(0.2, f0=100), RATE, subtype="FLOAT")
    paths = [clips[0]["audio"]["path"], str(tmp_path / "copy.wav"), clips[1]["audio"]["path"]]
    clips = Dataset.from_dict({"file": paths, "audio": paths})
    first, copy, other = extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path)["content"]
    assert first == copy != other


# --- the fingerprint ---


def test_fingerprint_changes_with_every_parameter(clips):
    changed = {
        "sampling_rate": 48_000, "min_length": 5000, "cqt_fmin": 40.0, "cqt_n_bins": 80, "cqt_bins_per_octave": 13,
        "cqt_hop_length": 256, "mel_n_fft": 2048, "mel_hop_length": 128, "n_mels": 64, "top_db": 60.0,
        "image_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "backend": "librosa",
    }  # fmt: skip
    assert set(changed) == set(inspect.signature(MaxMViTFeatureExtractor).parameters) - {"kwargs"}
    names = [cache_key(clips, MaxMViTFeatureExtractor(**{name: value})) for name, value in changed.items()]
    assert len({*names, cache_key(clips, MaxMViTFeatureExtractor())}) == len(changed) + 1


def test_fingerprint_changes_with_the_audio(clips, embedded):
    extractor = tiny_feature_extractor()
    name = cache_key(clips, extractor)
    assert name == cache_key(clips, tiny_feature_extractor())
    assert name != cache_key(clips.select([1, 0, 2, 3, 4]), extractor)
    assert name != cache_key(clips.select(range(4)), extractor)
    path = clips[0]["audio"]["path"]
    os.utime(path, ns=(0, 12345))
    touched = cache_key(clips, extractor)
    assert touched != name
    with open(path, "ab") as file:
        file.write(b"x")
    os.utime(path, ns=(0, 12345))
    assert cache_key(clips, extractor) != touched

    def flip_last_byte(row):
        contents = row["audio"]["bytes"]
        return {"audio": {"path": None, "bytes": contents[:-1] + bytes([contents[-1] ^ 1])}}

    assert cache_key(embedded, extractor) != cache_key(embedded.map(flip_last_byte), extractor)


def test_fingerprint_outlives_saving(clips, tmp_path):
    extractor = tiny_feature_extractor()
    extractor.save_pretrained(tmp_path)
    assert cache_key(clips, MaxMViTFeatureExtractor.from_pretrained(tmp_path)) == cache_key(clips, extractor)


# --- interruptions and bad clips ---


@pytest.mark.parametrize("workers", [1, 2])
def test_half_done_is_not_taken_for_whole(clips, tmp_path, monkeypatch, workers):
    extractor = tiny_feature_extractor()
    with monkeypatch.context() as patch:
        honest = ser.features.read_audio

        def stop_at_the_fourth(source, sampling_rate):
            if "clip_3" in source["path"]:
                raise RuntimeError("the lights went out")
            return honest(source, sampling_rate)

        patch.setattr(ser.features, "read_audio", stop_at_the_fourth)
        with pytest.raises(RuntimeError, match="lights"):
            extract_features(clips, extractor, num_workers=workers, cache_dir=tmp_path)
    assert not (tmp_path / cache_key(clips, extractor)).exists()
    later = extract_features(clips, extractor, cache_dir=tmp_path)
    assert same_images(later, extract_features(clips, extractor, cache_dir=tmp_path / "fresh"))
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_run_is_not_taken_for_whole(clips, tmp_path, monkeypatch):
    """As a kill leaves it: whole files of some workers, no farewell."""
    extractor = tiny_feature_extractor()
    name = cache_key(clips, extractor)
    monkeypatch.setattr(ser.features.os, "replace", lambda *paths: os._exit(1))
    if (child := os.fork()) == 0:
        extract_features(clips, extractor, cache_dir=tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert (tmp_path / f"{name}.partial").exists() and not (tmp_path / name).exists()
    monkeypatch.undo()
    assert len(extract_features(clips, extractor, cache_dir=tmp_path)) == 5
    assert [path.name for path in tmp_path.glob(f"{name}*") if path.is_dir()] == [name]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_clip_stops_with_its_name(clips, tmp_path, workers):
    break_clip(clips, 2)
    with pytest.raises(AudioError, match=r"clip_2\.wav"):
        extract_features(clips, tiny_feature_extractor(), num_workers=workers, cache_dir=tmp_path)


def test_an_embedded_bad_clip_is_named(embedded, tmp_path):
    rows = [{**row, "audio": {"path": None, "bytes": b"junk"}} for row in embedded]
    with pytest.raises(AudioError, match=r"clip_0\.wav"):
        extract_features(Dataset.from_list(rows), tiny_feature_extractor(), cache_dir=tmp_path)


def test_bad_clips_are_left_out_when_asked(clips, tmp_path, no_audio, monkeypatch):
    break_clip(clips, 1)
    os.remove(clips[4]["audio"]["path"])
    warnings = []
    monkeypatch.setattr(ser.features.logger, "warning", warnings.append)
    extractor = tiny_feature_extractor()
    for _ in range(2):  # computed, then from the cache
        features = extract_features(clips, extractor, cache_dir=tmp_path, on_bad_audio="skip")
        assert set(clips["file"]) - set(features["file"]) == {"clip_1.wav", "clip_4.wav"}
        assert features["label"][:] == [0, 0, 1]
        assert [row["cqt_values"].shape for row in features] == [(1, 64, 64)] * 3
        no_audio()
    assert len(warnings) == 4 and "clip_1.wav" in warnings[2] and "clip_4.wav" in warnings[3]
    with pytest.raises(AudioError, match=r"clip_1\.wav"):
        extract_features(clips, extractor, cache_dir=tmp_path)


def test_nothing_left_is_an_error(clips, tmp_path):
    for row in range(5):
        break_clip(clips, row)
    with pytest.raises(AudioError, match="none of the 5 clips"):
        extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path, on_bad_audio="skip")
    with pytest.raises(ValueError, match="no clips"):
        extract_features(clips.select([]), tiny_feature_extractor(), cache_dir=tmp_path)


# --- batches ---


def test_batches_from_images_and_from_audio_agree(clips, tmp_path):
    extractor = tiny_feature_extractor()
    collate = PairCollator(extractor)
    cached = collate([*extract_features(clips, extractor, cache_dir=tmp_path)])
    computed = collate([*clips])
    assert set(cached) == {*IMAGES, "labels"}
    assert cached["labels"].tolist() == [0, 1, 0, 1, 0] and cached["labels"].dtype == torch.int64
    for name in IMAGES:
        assert cached[name].shape == (5, 3, 64, 64) and cached[name].dtype == torch.float32
        torch.testing.assert_close(cached[name], computed[name], rtol=0, atol=5e-3)  # float16 over a std of 0.22
    first = extractor(voice(0.2, f0=100), RATE, "pt")
    torch.testing.assert_close(computed["mel_values"][:1], first["mel_values"])
    assert set(collate([*clips.remove_columns("label")])) == set(IMAGES)


def test_augmentation_sees_plain_images(clips):
    def augment(cqt, mel, labels):
        for images in (cqt, mel):
            assert images.shape == (5, 1, 64, 64) and images.min() >= 0 and images.max() <= 1
        return torch.zeros_like(cqt), mel, torch.nn.functional.one_hot(labels).float()

    extractor = tiny_feature_extractor()
    batch = PairCollator(extractor, augment)([*clips])
    assert batch["labels"].shape == (5, 2)
    assert torch.equal(batch["cqt_values"], extractor.normalize(torch.zeros(5, 1, 64, 64)))


def test_collator_reads_waveforms_that_changed(clips):
    waveform = voice(0.3) * np.float32(0.5)
    rows = [{"file": "a", "audio": {"array": waveform, "sampling_rate": RATE}, "label": 1}]
    extractor = tiny_feature_extractor()
    assert torch.equal(PairCollator(extractor)(rows)["mel_values"], extractor(waveform, RATE, "pt")["mel_values"])


def test_collator_names_a_bad_clip(clips):
    break_clip(clips, 3)
    with pytest.raises(AudioError, match=r"clip_3\.wav"):
        PairCollator(tiny_feature_extractor())([*clips])


def test_loader_workers_use_one_thread(clips):
    class Watching(PairCollator):
        def __call__(self, rows):
            return {**super().__call__(rows), "threads": torch.get_num_threads()}

    loader = DataLoader(clips, batch_size=2, collate_fn=Watching(tiny_feature_extractor()), num_workers=2)
    batches = list(loader)
    assert [batch["threads"] for batch in batches] == [1, 1, 1]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 1, 0, 1, 0]
