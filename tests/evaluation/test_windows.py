"""Windows of test clips, and the mean of their probabilities."""

import io

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from audio_maxmvit import AudioError, read_audio
from ser.data.batches import PairCollator
from ser.data.features import extract_features
from ser.evaluation.windows import mean_over_windows, training_lengths, window_starts, windows_of
from tests.helpers.tiny import tiny_config, tiny_feature_extractor, voice

RATE = 44_100


@given(st.floats(0.01, 60), st.floats(0.1, 10), st.floats(0.05, 1))
def test_windows_cover_the_whole_clip(seconds, window_s, hop_share):
    hop_s = hop_share * window_s
    starts = window_starts(seconds, window_s, hop_s)
    assert starts[0] == 0 and starts == sorted(starts)
    assert all(later - earlier <= hop_s + 1e-6 for earlier, later in zip(starts, starts[1:], strict=False))
    assert starts[-1] + window_s >= seconds - 1e-6
    assert len(starts) == 1 or starts[-1] + window_s <= seconds + 1e-6


@pytest.mark.parametrize("trim_db, expected", [(None, 4), (40.0, 2)])
def test_windows_of_a_table(tmp_path, trim_db, expected):
    extractor = tiny_feature_extractor(trim_db=trim_db, trim_margin=0.0)
    waveform = np.pad(voice(1.0), RATE // 2)  # 0.5 s of silence on both sides
    rows = []
    for name, samples in {"long": waveform, "short": voice(0.3)}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
        rows.append({"file": name, "audio": str(tmp_path / f"{name}.wav"), "label": len(rows)})
    features = extract_features(Dataset.from_list(rows), extractor, cache_dir=tmp_path / "cache")
    windows, owners = windows_of(features, extractor, 0.6, 0.5)
    assert owners == [0] * expected + [1]
    assert windows["label"][:] == owners and windows["file"][:] == ["long"] * expected + ["short"]
    images = PairCollator(extractor)([*windows])["images"]["mel"]
    assert images.shape[0] == len(owners)
    crop = extractor.cut(extractor.trim(features[0]["spectrograms"][0]), windows[1]["start"], windows[1]["end"])
    assert (images[1] == extractor.images([crop])["mel_values"][0].half()).all()


@pytest.mark.parametrize(
    "longest, training_window, expected",
    [(4.25, 2.0, (4.25, 2.0)), (5.0004, None, (5.001, 3.0)), (1.5, 2.0, (1.5, 1.5)), (0.002, None, (0.01, 0.01))],
)
def test_a_configuration_gets_the_longest_training_clip_and_the_training_window(longest, training_window, expected):
    clips = Dataset.from_list([{"file": "a", "seconds": 0.001}, {"file": "b", "seconds": longest}])
    lengths = training_lengths(clips, training_window)
    assert tuple(lengths.values()) == expected
    assert tiny_config(**lengths).max_clip_s == lengths["max_clip_s"]


@pytest.mark.parametrize("seconds, expected", [([1.0, 2.5, 4.0], 2.5), ([3.0], 3.0), ([0.001, 0.002], 0.01)])
def test_a_classifier_of_whole_clips_gets_windows_of_their_median_length(seconds, expected):
    clips = Dataset.from_list([{"file": str(row), "seconds": length} for row, length in enumerate(seconds)])
    assert training_lengths(clips, 2.0, whole_clips=True)["window_s"] == expected


@pytest.mark.parametrize("rate, samples", [(8_000, 8_001), (44_100, 61_740), (16_000, 37_603)])
def test_a_clip_at_any_rate_is_at_most_as_long_as_the_stored_length(rate, samples):
    file = io.BytesIO()
    soundfile.write(file, voice(samples / rate, sampling_rate=rate), rate, format="WAV")
    clip = {"bytes": file.getvalue(), "path": None}
    longest = training_lengths(Dataset.from_list([{"file": "a", "audio": clip}]), None)["max_clip_s"]
    assert samples / rate <= longest < samples / rate + 1.001e-3
    for target in (16_000, 22_050, RATE):
        assert len(read_audio(clip, target)) <= np.ceil(longest * target)


def test_a_clip_whose_length_cannot_be_read_is_named():
    clips = Dataset.from_list([{"file": "broken.wav", "audio": {"bytes": b"no sound", "path": None}}])
    with pytest.raises(AudioError, match="broken.wav: .* cannot be decoded"):
        training_lengths(clips, 2.0)


def test_probabilities_are_averaged_by_clip():
    logits = np.log([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
    np.testing.assert_allclose(mean_over_windows(logits, [0, 0, 1]), [[0.6, 0.4], [0.1, 0.9]])
