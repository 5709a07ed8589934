"""Batches of images by branch, from the cache and from audio, with and without workers."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from torch.utils.data import DataLoader

from audio_maxmvit import AudioError
from ser.data.batches import LengthGroupedSampler, PairCollator
from ser.data.features import extract_features, rearranged
from ser.training.trainer import SERTrainer
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice
from tests.helpers.training import make_arguments

BRANCHES = ("cqt", "mel")
RATE = 44_100


@pytest.fixture
def clips(tmp_path) -> Dataset:
    """Writes five wav files of unequal length."""
    rows = []
    for i in range(5):
        path = tmp_path / f"clip_{i}.wav"
        soundfile.write(path, voice(0.2 + 0.1 * i, f0=100 + 20 * i), RATE, subtype="FLOAT")
        rows.append({"file": path.name, "audio": str(path), "label": i % 2})
    return Dataset.from_list(rows).cast_column("audio", Audio(decode=False))


def test_batches_from_the_cache_and_from_audio_agree(clips, tmp_path):
    extractor = tiny_feature_extractor()
    collate = PairCollator(extractor)
    cached = collate([*extract_features(clips, extractor, cache_dir=tmp_path)])
    computed = collate([*clips])
    assert set(cached) == {"images", "labels"} and tuple(cached["images"]) == BRANCHES
    assert cached["labels"].tolist() == [0, 1, 0, 1, 0] and cached["labels"].dtype == torch.int64
    expected = extractor.extract([voice(0.2 + 0.1 * i, f0=100 + 20 * i) for i in range(5)])
    for branch in BRANCHES:
        images = cached["images"][branch]
        assert images.shape == (5, 1, 64, 64) and images.dtype == torch.float16
        torch.testing.assert_close(images, computed["images"][branch], rtol=0, atol=1e-3)
        torch.testing.assert_close(computed["images"][branch].float(), expected[f"{branch}_values"], rtol=0, atol=5e-4)
    assert set(collate([*clips.remove_columns("label")])) == {"images"}


def test_votes_become_labels_as_shares_of_the_annotators(clips, tmp_path):
    votes = [[3.0, 1.0], [1.0, 1.0], [0.0, 2.0], [1.0, 0.0], [0.0, 4.0]]
    batch = PairCollator(tiny_feature_extractor())([*clips.add_column("votes", votes)])
    expected = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(batch["labels"], expected)


def test_batches_have_one_channel_in_half_precision_and_are_normalized_on_the_device(clips, tmp_path):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, cache_dir=tmp_path / "cache")
    args = make_arguments(tmp_path, per_device_train_batch_size=5)
    trainer = SERTrainer(
        model=convnet_model(2), args=args, data_collator=PairCollator(extractor), train_dataset=features,
        eval_dataset=features, processing_class=extractor,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    size = sum(image.numel() * image.element_size() for image in batch["images"].values())
    assert size == 2 * 5 * 64 * 64 * 2
    inputs = trainer.normalized(batch)
    assert set(inputs) == {"cqt_values", "mel_values", "labels"}
    for branch in BRANCHES:
        assert inputs[f"{branch}_values"].shape == (5, 3, 64, 64)
        assert torch.equal(inputs[f"{branch}_values"], extractor.normalize(batch["images"][branch].float()))
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_a_row_with_start_and_end_is_a_window(clips, tmp_path):
    extractor = tiny_feature_extractor()
    features = extract_features(clips, extractor, cache_dir=tmp_path)
    windows = rearranged(features, [4, 4], start=[0.0, 0.2], end=[0.3, 0.5])
    batch = PairCollator(extractor)([*windows])
    clip = features[4]["spectrograms"][0]
    expected = extractor.images([extractor.cut(clip, 0.0, 0.3), extractor.cut(clip, 0.2, 0.5)])
    assert torch.equal(batch["images"]["mel"], expected["mel_values"].half())
    assert windows["file"][:] == ["clip_4.wav"] * 2


def test_augmentations_get_plain_spectrograms_then_plain_images(clips):
    def silence(clip):
        assert set(clip) >= set(BRANCHES)
        return {name: torch.full_like(db, -50.0) if name == "mel" else db for name, db in clip.items()}

    def augment(images, labels):
        assert all(image.shape == (5, 1, 64, 64) and image.min() >= 0 for image in images.values())
        assert not images["mel"].any()
        return {**images, "cqt": images["cqt"] / 2}, torch.nn.functional.one_hot(labels).float()

    extractor = tiny_feature_extractor()
    batch = PairCollator(extractor, augment, silence)([*clips])
    assert batch["labels"].shape == (5, 2)
    plain = PairCollator(extractor)([*clips])["images"]["cqt"]
    assert torch.equal(batch["images"]["cqt"], (plain.float() / 2).half())


def test_collator_reads_waveforms(clips):
    waveform = voice(0.3) * np.float32(0.5)
    rows = [{"file": "a", "audio": {"array": waveform, "sampling_rate": RATE}, "label": 1}]
    extractor = tiny_feature_extractor()
    batch = PairCollator(extractor)(rows)
    assert torch.equal(batch["images"]["mel"], extractor.extract(waveform)["mel_values"].half())


def test_collator_names_a_bad_clip(clips):
    Path(clips[3]["audio"]["path"]).write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"clip_3\.wav"):
        PairCollator(tiny_feature_extractor())([*clips])


def test_loader_workers_use_one_thread(clips):
    class ThreadCountingCollator(PairCollator):
        def __call__(self, rows):
            return {**super().__call__(rows), "threads": torch.get_num_threads()}

    loader = DataLoader(
        clips, batch_size=2, collate_fn=ThreadCountingCollator(tiny_feature_extractor()), num_workers=2
    )
    batches = list(loader)
    assert [batch["threads"] for batch in batches] == [1, 1, 1]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 1, 0, 1, 0]


def test_batches_have_clips_of_similar_length_in_an_order_that_depends_on_seed_and_epoch():
    lengths = np.random.default_rng(0).uniform(1, 10, 403).tolist()

    def order(epoch: int, seed: int = 5) -> list[int]:
        sampler = LengthGroupedSampler(lengths, 8, seed)
        sampler.epoch = epoch
        torch.rand(3)  # draws from torch's global generator change nothing
        return list(sampler)

    assert sorted(order(0)) == list(range(403)) and len(LengthGroupedSampler(lengths, 8, 5)) == 403
    assert order(1) == order(1) != order(0) and order(1) != order(1, seed=7)

    def padding_share(rows: list[int]) -> float:
        batches = [[lengths[row] for row in rows[i : i + 8]] for i in range(0, 400, 8)]
        return sum(max(batch) - length for batch in batches for length in batch) / sum(lengths)

    assert padding_share(order(2)) < 0.1 and padding_share(list(range(403))) > 0.5  # without sorting


def test_cached_embeddings_alone_read_no_spectrogram():
    class Unread(list):
        contents = ["a", "b"]

        def __getitem__(self, index):
            raise AssertionError("read")

    kept = {name: torch.full((3, 2, 4), float(index)) for index, name in enumerate("ab")}
    collate = PairCollator(tiny_feature_extractor(), layer_statistics=kept, branches=[])
    batch = collate([{"spectrograms": Unread([0, 1]), "label": label} for label in (0, 1)])
    assert batch["input_values"].equal(torch.stack([kept["a"], kept["a"]])) and not batch["images"]
    with pytest.raises(AssertionError, match="read"):
        PairCollator(tiny_feature_extractor(), layer_statistics=kept)([{"spectrograms": Unread([0]), "label": 0}])
