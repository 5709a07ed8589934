"""Reading files: what is exact."""

import io

import librosa
import numpy as np
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

import audio_maxmvit
from audio_maxmvit import read_audio, stream_audio


def wav(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=length).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    rates=st.tuples(*[st.sampled_from([1_000, 7_919, 8_000, 11_025, 16_001, 44_099, 44_100, 48_000, 192_000])] * 2),
    length=st.integers(1, 20_000),
    block=st.sampled_from([1, 2, 7, 100, 4_096, 10**6]),
    seed=st.integers(0, 99),
)
def test_blocks_are_resampled_to_what_the_whole_file_gives_sample_for_sample(rates, length, block, seed):
    rate, target = rates
    clip = noise(min(length, 300 * block), seed)
    whole = soxr.resample(clip, rate, target) if rate != target else clip
    pieces = (clip[start : start + block] for start in range(0, len(clip), block))
    answer = np.concatenate(list(audio_maxmvit._resampled(pieces, rate, target)))
    assert len(answer) == -(-len(clip) * target // rate)  # as librosa counts; soxr rounds
    np.testing.assert_array_equal(answer[: len(whole)], whole)
    assert not answer[len(whole) :].any()


def test_a_file_read_in_blocks_equals_librosa_on_the_whole_of_it(monkeypatch):
    clip = noise(round(7.3 * 11_025))
    monkeypatch.setattr(audio_maxmvit, "BLOCK_S", 1)
    assert len(list(stream_audio(wav(clip, 11_025), 11_025))) == 8
    whole = librosa.resample(clip, orig_sr=11_025, target_sr=16_000, res_type="soxr_hq")
    np.testing.assert_array_equal(read_audio(wav(clip, 11_025), 16_000), whole)


def test_a_clip_of_one_sample_is_never_resampled_to_none():
    assert len(read_audio(wav(noise(1), 192_000), 16_000)) == 1
