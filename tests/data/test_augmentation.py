"""Augmentation of batches (SpecAugment, mixup) and of spectrograms (random windows, gain)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.arguments import AugmentationArguments, ClipAugmentationArguments
from ser.data.augmentation import (
    Compose,
    Mixup,
    RandomGain,
    RandomWindow,
    SpecAugment,
    make_augmentation,
    make_spectrogram_augmentation,
    random_masks,
    seconds_of,
)
from tests.helpers.tiny import tiny_feature_extractor, voice


def images(batch_size=3, height=20, width=30, seed=0):
    return torch.rand(batch_size, 1, height, width, generator=torch.Generator().manual_seed(seed)) / 2 + 0.5


@given(
    length=st.integers(1, 300),
    num_masks=st.integers(0, 4),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_masks_stay_within_their_number_and_width(length, num_masks, share, seed):
    torch.manual_seed(seed)
    masked = random_masks(5, length, num_masks, share)
    assert masked.shape == (5, length)
    edges = torch.nn.functional.pad(masked.int(), (1, 1)).diff(dim=1)
    assert ((edges == 1).sum(dim=1) <= num_masks).all()
    assert (masked.sum(dim=1) <= num_masks * (share * length + 1)).all()


def test_masks_cover_every_position_and_differ_between_clips():
    torch.manual_seed(0)
    masked = random_masks(4000, 50, 1, 0.2)
    masked_share = masked.float().mean(dim=0)
    assert masked_share.min() > 0.01
    assert masked_share[5:-5].std() < 0.02
    assert len({tuple(row.tolist()) for row in masked[:20]}) > 10


def test_specaugment_masks_the_same_frames_in_both_images():
    torch.manual_seed(1)
    cqt, mel = images(seed=0), images(height=40, seed=1)
    labels = torch.tensor([0, 1, 2])
    masked, new_labels = SpecAugment(2, time_share=0.3, frequency_share=0.0)({"cqt": cqt, "mel": mel}, labels)
    new_cqt, new_mel = masked.values()
    hidden = (new_cqt == 0).all(dim=2)
    assert hidden.any() and torch.equal(hidden, (new_mel == 0).all(dim=2))
    assert torch.equal(new_labels, labels)
    kept = new_cqt != 0
    assert torch.equal(new_cqt[kept], cqt[kept])
    assert (cqt > 0).all(), "the input must not change"


def test_specaugment_masks_different_bands_in_each_image():
    torch.manual_seed(1)
    inputs = {name: images() for name in ("cqt", "mel", "third")}
    masked, _ = SpecAugment(1, time_share=0.0, frequency_share=0.4)(inputs, torch.zeros(3))
    bands = [(new == 0).all(dim=3) for new in masked.values()]
    assert all(band.any() for band in bands)
    assert len({str(band.tolist()) for band in bands}) == 3


def test_specaugment_refuses_invalid_shares_and_images_of_unequal_width():
    with pytest.raises(ValueError, match="time_share=1.5"):
        SpecAugment(time_share=1.5)
    with pytest.raises(ValueError, match="cqt 30, mel 31"):
        SpecAugment()({"cqt": images(), "mel": images(width=31)}, torch.zeros(3))


@given(alpha=st.floats(0.05, 5), batch_size=st.integers(1, 8), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_mixup_blends_images_as_it_blends_labels(alpha, batch_size, seed):
    torch.manual_seed(seed)
    labels = torch.randint(5, (batch_size,))
    # Images that encode only their label, so the blended image must equal the blended label.
    encoded = torch.nn.functional.one_hot(labels, 5).float()[:, None, :, None].expand(-1, 1, 5, 4)
    blended, soft = Mixup(alpha, 5)({"cqt": encoded, "mel": encoded / 2}, labels)
    cqt, mel = blended.values()
    torch.testing.assert_close(cqt[:, 0, :, 0], soft)
    torch.testing.assert_close(mel, cqt / 2)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(batch_size))
    assert soft.dtype == torch.float32 and (soft >= 0).all()
    torch.testing.assert_close(soft.sum(dim=0).sum(), torch.tensor(float(batch_size)))


def test_mixup_shares_follow_their_distribution():
    torch.manual_seed(0)
    labels = torch.arange(2000) % 2
    blank = torch.zeros(2000, 1, 1, 1)
    _, soft = Mixup(0.2, 2)({"cqt": blank}, labels)
    blended = ((soft > 0.1) & (soft < 0.9)).any(dim=1).float().mean()
    assert 0.05 < blended < 0.35
    with pytest.raises(ValueError, match="alpha"):
        Mixup(0.0, 2)


def test_settings_choose_the_augmentation():
    assert make_augmentation(AugmentationArguments(), 4) is None
    both = make_augmentation(AugmentationArguments(specaugment_masks=1, mixup_alpha=0.3), 4)
    assert isinstance(both, Compose)
    _, labels = both({"cqt": images(), "mel": images()}, torch.tensor([0, 1, 3]))
    assert labels.shape == (3, 4)


# --- spectrograms of one clip ---


def clip(seconds=3.0, extractor=None, silence=0.0):
    waveform = torch.nn.functional.pad(torch.from_numpy(voice(seconds)), [round(silence * 44_100)] * 2)
    return (extractor or tiny_feature_extractor()).spectrograms(waveform)[0]


def test_windows_are_crops_of_the_clip_and_cover_all_of_it():
    extractor, whole = tiny_feature_extractor(), clip()
    window = RandomWindow(extractor, 1.0)
    marked = whole | {"rms": torch.arange(len(whole["rms"])).float()}
    torch.manual_seed(0)
    firsts = []
    for _ in range(300):
        cut = window(marked)
        first = int(cut["rms"][0])
        assert seconds_of(cut, extractor) == pytest.approx(1.0, abs=0.006)
        assert torch.equal(cut["mel"], whole["mel"][:, first : first + cut["mel"].shape[1]])
        near = (first // 2, (first + 1) // 2)
        assert any(torch.equal(cut["cqt"], whole["cqt"][:, at : at + cut["cqt"].shape[1]]) for at in near)
        firsts.append(first * 256 / 44_100)
    assert min(firsts) < 0.05 and max(firsts) > 1.95
    assert abs(sum(firsts) / 300 - 1.0) < 0.12


def test_short_clips_and_a_share_of_the_others_are_not_cropped():
    short, long = clip(0.8), clip(2.0)
    torch.manual_seed(0)
    window = RandomWindow(tiny_feature_extractor(), 1.0, whole_share=0.25)
    assert all(window(short) is short for _ in range(5))
    assert 30 < sum(window(long) is long for _ in range(200)) < 70


def test_stretch_changes_the_tempo_by_up_to_its_share_in_both_directions():
    extractor, whole = tiny_feature_extractor(), clip()
    torch.manual_seed(0)
    lengths = [seconds_of(RandomWindow(extractor, 1.0, stretch=0.25)(whole), extractor) for _ in range(200)]
    assert 0.79 < min(lengths) < 0.85 and 1.2 < max(lengths) < 1.26
    assert abs(sum(map(math.log, lengths)) / 200) < 0.03


def test_windows_lie_within_the_trimmed_clip():
    extractor = tiny_feature_extractor(trim_db=40.0, trim_margin=0.0)
    whole = clip(1.5, extractor, silence=2.0)
    torch.manual_seed(0)
    window = RandomWindow(extractor, 1.0)
    assert all(window(whole)["rms"].min() > whole["rms"].max() - 45 for _ in range(50))
    assert any(RandomWindow(tiny_feature_extractor(), 1.0)(whole)["rms"].max() < -90 for _ in range(50))


def test_gain_shifts_all_levels_equally_and_affects_full_scale_images_only():
    plain, loud = tiny_feature_extractor(), tiny_feature_extractor(level="full_scale")
    whole = {name: db.clamp(-55, 20) for name, db in clip().items()}
    torch.manual_seed(0)
    gains = []
    for _ in range(100):
        changed = RandomGain(6.0)(whole)
        gain = (changed["rms"] - whole["rms"])[0]
        gains.append(gain.item())
        for name, db in whole.items():
            torch.testing.assert_close(changed[name], db + gain)
    assert -6 <= min(gains) < -5 and 5 < max(gains) <= 6
    before, after = loud.images([whole])["mel_values"], loud.images([changed])["mel_values"]
    low, high = loud.full_scale_db
    inside = (before > 0.1) & (before < 0.9)
    torch.testing.assert_close((after - before)[inside], torch.full_like(before, gain / (high - low))[inside])
    torch.testing.assert_close(plain.images([whole])["mel_values"], plain.images([changed])["mel_values"])


def test_settings_choose_the_augmentation_of_spectrograms():
    extractor = tiny_feature_extractor()
    assert make_spectrogram_augmentation(ClipAugmentationArguments(), extractor) is None
    both = make_spectrogram_augmentation(
        ClipAugmentationArguments(training_window=1.0, gain_db=3.0), tiny_feature_extractor(level="full_scale")
    )
    torch.manual_seed(0)
    changed = both(clip())
    assert seconds_of(changed, extractor) == pytest.approx(1.0, abs=0.006)
    with pytest.raises(ValueError, match="full_scale"):
        make_spectrogram_augmentation(ClipAugmentationArguments(gain_db=3.0), extractor)
    for wrong, message in (
        ({"seconds": 0.0}, "seconds=0.0 must be above 0"),
        ({"whole_share": 2.0}, "whole_share=2.0 must be"),
        ({"stretch": -1.0}, "stretch=-1.0 must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomWindow(**{"feature_extractor": extractor, "seconds": 1.0, **wrong})
    with pytest.raises(ValueError, match="gain_db"):
        RandomGain(0.0)
