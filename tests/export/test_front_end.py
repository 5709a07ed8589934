"""The exported front end, made of plain operators, gives the images of the extractor for all of its settings."""

import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from audio_maxmvit import read_audio
from feature_extraction_maxmvit import read_processor, resampled
from ser.export.front_end import FrontEnd, Resample
from ser.utils import DataError
from tests.helpers.tiny import noise, tiny_feature_extractor, voice

SILENT_ENDS = np.concatenate([noise(17_640, 1) * 1e-3, voice(1.0), noise(13_230, 2) * 1e-3])
CLIPS = {
    "silent ends": SILENT_ENDS,
    "shorter than an STFT window": voice(0.05),
    "half a hop beyond a frame": voice(1.0)[: 512 * 60 + 256],
    "zeros": np.zeros(6_000, np.float32),
    "as loud as integer samples": 3e8 * voice(0.4, f0=220),
}
CHOICES = [
    dict(zip(("trim_db", "level", "mel_representation", "channels"), values, strict=True))
    for values in product((None, 35.0), ("clip", "full_scale"), ("log-mel", "mfcc"), ("repeat", "deltas"))
]
# Trimming to a few frames, too short for the filter of deltas and for half a hop; other sizes; other transforms.
OTHERS = [
    {"trim_db": 3.0, "trim_margin": 0.0, "channels": "deltas", "image_size": (64, 96)},
    {"top_db": 30.0, "image_mean": (0.5,) * 3, "image_std": (0.2, 0.3, 0.4), "image_size": 244},
    {
        "sampling_rate": 16_000, "cqt_n_bins": 61, "cqt_hop_length": 256, "mel_n_fft": 1_200, "mel_hop_length": 160,
        "n_mels": 40, "trim_db": 30.0, "trim_margin": 0.0105, "min_length": 1_000,
    },
    {"cqt_bins_per_octave": 24, "cqt_n_bins": 100, "cqt_fmin": 55.0, "mel_n_fft": 2_048, "mel_hop_length": 441},
]  # fmt: skip


def assert_same_images(extractor, waveform: np.ndarray) -> None:
    expected = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    front_end = FrontEnd(extractor).eval()
    with torch.no_grad():
        own = front_end(torch.from_numpy(waveform)[None])
    assert list(own) == ["cqt_values", "mel_values", "shown"]
    start, end = extractor.speech_bounds(extractor.spectrograms(waveform)[0])
    length = len(waveform) / extractor.sampling_rate
    whole = extractor.trim_db is None
    assert own.pop("shown")[0].tolist() == pytest.approx((0, length) if whole else (start, min(end, length)))
    std = torch.tensor(extractor.image_std)[:, None, None]
    for name, image in own.items():
        difference = ((image - expected[name]) * std).abs()
        assert image.shape == expected[name].shape
        # The ends of wavelets are cut off, which changes quiet parts of the CQT.
        most, mean = (2e-3, 5e-5) if name == "cqt_values" else (1e-4, 1e-6)
        assert difference.max() < most and difference.mean() < mean, name


@pytest.mark.slow
@pytest.mark.parametrize("choices", [*CHOICES, *OTHERS], ids=str)
def test_every_choice_of_the_extractor_gives_its_images(choices):
    assert_same_images(tiny_feature_extractor(**choices), SILENT_ENDS)


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_every_kind_of_clip_gives_the_extractors_images(clip):
    assert_same_images(tiny_feature_extractor(trim_db=35.0, channels="deltas"), CLIPS[clip])


@pytest.mark.slow
@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR does not name a RAVDESS folder")
def test_speech_gives_the_extractors_images():
    for path in sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))[::479]:
        assert_same_images(tiny_feature_extractor(trim_db=35.0), read_audio(path, 44_100))


def test_each_clip_of_a_batch_is_trimmed_by_itself():
    extractor = tiny_feature_extractor(trim_db=35.0)
    front_end = FrontEnd(extractor).eval()
    clips = np.stack([SILENT_ENDS, SILENT_ENDS[::-1], np.roll(SILENT_ENDS, 9_000)])
    with torch.no_grad():
        together = front_end(torch.from_numpy(clips))
        alone = [front_end(torch.from_numpy(clip.copy())[None]) for clip in clips]
    for name, images in together.items():
        torch.testing.assert_close(images, torch.cat([one[name] for one in alone]), atol=2e-5, rtol=0)
        least = 0.2 if images.ndim == 4 else 0.02
        assert (images[0] - images[2]).abs().max() > least  # else all clips would have equal images


@pytest.mark.parametrize("branch", ["cqt", "mel"])
def test_a_model_of_one_branch_gets_its_image_only(branch):
    extractor = tiny_feature_extractor()
    own = FrontEnd(extractor, [branch])(torch.from_numpy(SILENT_ENDS)[None])
    assert list(own) == [f"{branch}_values", "shown"]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
def test_a_waveform_is_resampled_as_by_soxr(rate):
    resample = Resample(rate, Wav2Vec2FeatureExtractor())
    for samples in (4_097, 12_345, 30_000):
        clip = torch.from_numpy(voice(samples / rate, sampling_rate=rate) + noise(samples))
        expected, own = resampled(clip, rate, Wav2Vec2FeatureExtractor()), resample(clip[None])[0]
        assert own.shape == expected.shape
        assert (own - expected)[4:].abs().max() < 1e-6 and (own - expected).abs().max() < 1e-2


@pytest.mark.parametrize("rate", [44_101, 15_999])
def test_rates_without_a_simple_ratio_are_refused(rate):
    with pytest.raises(DataError, match=f"sampling_rate={rate} cannot be exported beside a speech encoder"):
        Resample(rate, Wav2Vec2FeatureExtractor())


@pytest.mark.slow
@pytest.mark.parametrize("trim_db", [None, 35.0])
@pytest.mark.parametrize("family", ["whisper", "wavlm", "hubert"])  # frames, samples, samples of unit variance
def test_a_speech_encoder_gets_the_extractors_inputs(encoders, family, trim_db):
    """Whisper gets pieces, which are 1 s long for the test encoder."""
    extractor = tiny_feature_extractor(trim_db=trim_db, speech_processor=read_processor(encoders[family]))
    front_end = FrontEnd(extractor, ["speech"]).eval()
    long = np.concatenate([noise(9_000, 1) * 1e-3, voice(2.31, f0=170), noise(5_000, 2) * 1e-3])
    for clip in (SILENT_ENDS, long, voice(0.05), voice(1.0), voice(2.05)):
        expected = extractor(clip, sampling_rate=44_100, return_tensors="pt")["input_values"]
        with torch.no_grad():
            own = front_end(torch.from_numpy(clip)[None])
        assert list(own) == ["input_values", "attention_mask", "shown"]
        values = own["input_values"]
        if family == "whisper":
            own_frames = own["attention_mask"][0].sum(-1).tolist()
            assert all(frames == 100 for frames in own_frames[:-1])
            assert not values[0, -1, :, own_frames[-1] :].any()  # padding
            values = torch.cat([piece[:, :n] for piece, n in zip(values[0], own_frames, strict=True)], dim=1)[None]
        assert values.shape == expected.shape
        difference = (values - expected).abs()
        assert difference[..., 4:].max() < 1e-3 and difference.mean() < 1e-5
