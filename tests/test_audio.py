"""Reading files: what is exact, and where it ends."""

import io
import os
import time

import librosa
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

import audio_maxmvit
from audio_maxmvit import AudioError, read_audio, stream_audio


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


@pytest.mark.slow
def test_a_file_read_in_blocks_equals_librosa_on_the_whole_of_it(monkeypatch):
    clip = noise(round(7.3 * 11_025))
    monkeypatch.setattr(audio_maxmvit, "BLOCK_VALUES", 12_345)
    assert len(list(stream_audio(wav(clip, 11_025), 11_025))) == 7
    whole = librosa.resample(clip, orig_sr=11_025, target_sr=16_000, res_type="soxr_hq")
    np.testing.assert_array_equal(read_audio(wav(clip, 11_025), 16_000), whole)


def test_a_clip_of_one_sample_is_never_resampled_to_none():
    assert len(read_audio(wav(noise(1), 192_000), 16_000)) == 1


@pytest.mark.parametrize("rate", [1, 999, 4_000_001, 2**31 - 1])
def test_a_rate_that_nobody_records_at_is_refused(rate):
    content = bytearray(wav(noise(500), 8_000))
    content[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(AudioError, match=f"sampling rate {rate}; only whole numbers .* from 1,000 to 4,000,000"):
        read_audio(bytes(content), 44_100)
    with pytest.raises(AudioError, match=f"sampling rate {rate}; only"):
        read_audio({"array": noise(500), "sampling_rate": rate}, 44_100)


@pytest.mark.parametrize("filler", [bytes(8), b"JUNK\0\0\0\0"])
@pytest.mark.parametrize("kind", [b"RIFF", b"FORM"])
def test_a_header_without_an_end_costs_no_time(kind, filler):
    form = b"WAVE" if kind == b"RIFF" else b"AIFF"
    content = kind + b"\x00\x00\x40\x01" + form + filler * (20 * 2**20 // 8)
    start = time.monotonic()
    with pytest.raises(AudioError, match=r"cannot be decoded \(over 1,000 chunks and no samples\)"):
        read_audio(content, 44_100)
    assert time.monotonic() - start < 0.5


def test_a_clip_has_a_greatest_length_that_a_tiny_file_cannot_pass(tmp_path):
    """A flac of silence unpacks ten-thousand-fold."""
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(11):
            file.write(np.zeros(60 * 16_000, np.int16))
    assert path.stat().st_size < 100_000
    with pytest.raises(AudioError, match="bomb.flac lasts longer than 600 s, the most that is taken"):
        read_audio(path, 16_000)
    assert len(read_audio(path, 16_000, max_s=660)) == len(read_audio(path, 16_000, max_s=None)) == 660 * 16_000
    assert sum(map(len, stream_audio(path, 16_000))) == 660 * 16_000


def test_a_broken_file_is_refused_without_a_word_of_its_own(capfd, recwarn):
    file = io.BytesIO()
    soundfile.write(file, noise(800), 8_000, format="AIFF", subtype="PCM_16")
    with pytest.raises(AudioError, match="cannot be decoded"):  # libsndfile looks for the samples at -1
        read_audio(file.getvalue().replace(b"SSND", b"SND\0"), 8_000)
    loud = np.array([[np.inf, -np.inf]] * 10, np.float32)
    with pytest.raises(AudioError, match="holds NaN or infinite"):
        read_audio(wav(loud, 8_000), 8_000)
    assert capfd.readouterr().err == ""
    assert not recwarn.list


def test_a_name_decides_nothing(tmp_path):
    (tmp_path / "voice.raw").write_bytes(wav(noise(800), 8_000))
    assert len(read_audio(tmp_path / "voice.raw", 8_000)) == 800


def test_many_channels_take_no_more_memory_than_one(monkeypatch):
    monkeypatch.setattr(audio_maxmvit, "BLOCK_VALUES", 8_000)
    clip = np.repeat(noise(1_000)[:, None], 200, axis=1)
    pieces = list(stream_audio(wav(clip, 8_000), 8_000))
    assert max(map(len, pieces)) == 40
    np.testing.assert_allclose(np.concatenate(pieces), clip[:, 0], atol=1e-6)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "voice.wav")
    with pytest.raises(AudioError, match="voice.wav is no file but a device or a pipe"):
        read_audio(tmp_path / "voice.wav", 16_000)
    with pytest.raises(AudioError, match="/dev/zero is no file but a device"):
        read_audio("/dev/zero", 16_000)
