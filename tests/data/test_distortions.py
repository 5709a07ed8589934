"""Corruptions of waveforms: noise, rooms, telephones, codecs, clipping, gain, speed and pitch."""

import subprocess
import sys
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

from ser.data import corruptions
from tests.helpers.tiny import voice

RATE = 44_100
ROOT = Path(__file__).parents[2]
SPEECH = torch.from_numpy(voice(2.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def level_db(waveform: torch.Tensor) -> float:
    return 10 * float(waveform.square().mean().log10())


@pytest.mark.parametrize("snr", [20, 0])
def test_noise_has_the_requested_ratio_and_depends_on_the_seed(snr):
    noisy = corruptions.white_noise(SPEECH, snr, generator())
    assert level_db(SPEECH) - level_db(noisy - SPEECH) == pytest.approx(snr, abs=0.05)
    assert torch.equal(noisy, corruptions.white_noise(SPEECH, snr, generator()))
    assert not torch.equal(noisy, corruptions.white_noise(SPEECH, snr, generator(1)))


def test_babble_is_repeated_to_length_and_silence_stays_silent():
    crowd = corruptions.babble([torch.from_numpy(voice(0.5, f0)) for f0 in (100.0, 150.0, 210.0)], len(SPEECH))
    assert crowd.shape == SPEECH.shape
    assert level_db(SPEECH) - level_db(corruptions.mix(SPEECH, crowd, 10) - SPEECH) == pytest.approx(10, abs=0.05)
    silence = torch.zeros(1000)
    assert torch.equal(corruptions.mix(silence, crowd, 10), silence)


@pytest.mark.parametrize("rt60", [0.3, 0.7])
def test_a_rooms_energy_falls_by_60_db_in_its_reverberation_time(rt60):
    click = torch.zeros(2 * RATE)
    click[0] = 1.0
    tail = corruptions.reverberate(click, RATE, rt60, generator())[1:].square()
    left = 10 * torch.log10(tail.flip(0).cumsum(0).flip(0) / tail.sum())  # Schroeder's backward integration
    falls_to = [int((left < -db).nonzero()[0]) / RATE for db in (5, 25)]
    assert 3 * (falls_to[1] - falls_to[0]) == pytest.approx(rt60, rel=0.1)


@pytest.mark.parametrize("mu_law", [False, True])
def test_a_telephone_keeps_its_band(mu_law):
    noise = 0.1 * torch.randn(RATE, generator=generator())
    power = torch.fft.rfft(corruptions.telephone(noise, RATE, mu_law)).abs().square()
    bands = [power[slice(low, high)].mean() for low, high in ((20, 100), (500, 3000), (4500, 20_000))]
    assert bands[0] < 0.1 * bands[1] and bands[2] < 0.01 * bands[1]


def test_frequencies_above_half_the_lower_rate_are_removed():
    power = torch.fft.rfft(corruptions.through_rate(torch.randn(RATE, generator=generator()), RATE, 16_000)).abs()
    assert power[9000:].mean() < 0.01 * power[:7000].mean()


@pytest.mark.parametrize(
    ("form", "rate", "bounds"),
    [("mp3", corruptions.MP3_RATE, corruptions.MP3_KBPS), ("opus", corruptions.OPUS_RATE, corruptions.OPUS_KBPS)],
)
@pytest.mark.parametrize("kbps", [8, 16, 32])
def test_codecs_use_the_requested_bit_rate(form, rate, bounds, kbps, monkeypatch):
    sizes = []
    read = soundfile.read
    monkeypatch.setattr(soundfile, "read", lambda file, **k: sizes.append(len(file.getvalue())) or read(file, **k))
    decoded = getattr(corruptions, form)(SPEECH, RATE, kbps)
    assert sizes[0] * 8 / 2.0 / 1000 == pytest.approx(kbps, rel=0.35)
    assert decoded.shape == SPEECH.shape and decoded.isfinite().all()
    assert torch.corrcoef(torch.stack([decoded, SPEECH]))[0, 1] > 0.7
    with pytest.raises(ValueError, match="is not available"):
        getattr(corruptions, form)(SPEECH, RATE, 1)


def test_vorbis_is_close_to_the_original():
    assert torch.corrcoef(torch.stack([corruptions.vorbis(SPEECH, RATE), SPEECH]))[0, 1] > 0.98


def test_clipping_and_gain_stop_at_a_level():
    clipped = corruptions.clip_loudest(SPEECH, 0.2)
    assert (clipped.abs() >= clipped.abs().max() * 0.999).float().mean() == pytest.approx(0.2, abs=0.01)
    assert level_db(corruptions.gain(SPEECH, -20)) == pytest.approx(level_db(SPEECH) - 20, abs=0.01)
    assert corruptions.gain(SPEECH, 40).abs().max() == 1.0


def test_speed_changes_pitch_and_length_and_pitch_only_pitch():
    time = np.arange(RATE) / RATE
    tone = torch.from_numpy(np.sin(2 * np.pi * 440 * time).astype(np.float32))

    def strongest(waveform: torch.Tensor) -> float:
        return float(torch.fft.rfft(waveform).abs().argmax()) * RATE / len(waveform)

    faster = corruptions.speed(tone, RATE, 1.1)
    assert len(faster) == pytest.approx(RATE / 1.1, abs=2) and strongest(faster) == pytest.approx(484, abs=3)
    higher = corruptions.pitch(tone, RATE, 2)
    assert len(higher) == len(tone) and strongest(higher) == pytest.approx(440 * 2 ** (2 / 12), abs=8)


@pytest.mark.slow  # librosa compiles it first
@pytest.mark.parametrize("rate", [0.8, 1.25, 2 ** (1 / 12)])
def test_the_phase_vocoder_equals_that_of_librosa(rate):
    spectrum = torch.stft(SPEECH[:RATE], corruptions.N_FFT, window=torch.hann_window(2048), return_complex=True)
    expected = librosa.phase_vocoder(spectrum.numpy().astype(np.complex128), rate=rate)
    stretched = corruptions.phase_vocoder(spectrum, rate)
    assert stretched.shape == expected.shape
    assert np.abs(stretched.numpy() - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.slow
def test_altered_copies_need_no_torchaudio():
    code = (
        "import sys; sys.modules['torchaudio'] = None  # its import fails\n"
        "import torch, ser.data.features; from ser.data.altered_copies import CHAINS, Draw, WaveformCopies\n"
        "sound = 0.1 * torch.randn(9000)\n"
        "for chain in CHAINS:\n"
        "    for link, _ in CHAINS[chain]: link(sound, 44100, Draw(1))\n"
        "    assert len(WaveformCopies(1, chain).make(sound.numpy(), 44100, 1))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("samples", [2, 3, 7])
def test_clips_of_a_few_samples_pass_every_band_limit(samples):
    short = torch.linspace(-0.5, 0.5, samples)
    for changed in (
        corruptions.telephone(short, RATE, mu_law=True), corruptions.through_rate(short, RATE, 1000),
        corruptions.pitch(short, RATE, -2), corruptions.vorbis(short, RATE),
        corruptions.mp3(short, RATE, 64.0), corruptions.opus(short, RATE, 16.0),
    ):  # fmt: skip
        assert changed.shape == short.shape and changed.isfinite().all()


def test_a_clip_of_one_sample_passes_every_corruption():
    one, g = torch.full((1,), 0.5), generator()
    for changed in (
        corruptions.white_noise(one, 10, g), corruptions.reverberate(one, RATE, 0.3, g), corruptions.gain(one, 3),
        corruptions.telephone(one, RATE), corruptions.clip_loudest(one, 0.2),
        corruptions.mp3(one, RATE, 64.0), corruptions.opus(one, RATE, 16.0), corruptions.vorbis(one, RATE),
        corruptions.telephone(one, RATE, mu_law=True), corruptions.pitch(one, RATE, 1),
    ):  # fmt: skip
        assert changed.shape == (1,) and changed.isfinite().all()
