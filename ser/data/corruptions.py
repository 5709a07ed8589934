"""Corruptions of speech by noise, rooms, telephones, codecs and levels.

Every function takes a waveform `(T,)`, float32 in [-1, 1], and returns one of the same length. Random numbers come
from the `torch.Generator` that is passed. Kinds and strengths follow Robuser (noise, reverberation, clipping, mp3;
openreview.net NzrqCcqdbF), with telephone, mu-law and Opus added.
"""

import io
import math

import numpy as np
import soundfile
import soxr
import torch
from scipy.signal import butter, fftconvolve, sosfilt
from torch.nn.functional import pad

SPEED_OF_DECAY = math.log(1000)  # the amplitude falls by 60 dB within RT60
TELEPHONE_HZ, TELEPHONE_RATE = (300, 3400), 8_000
# Bit rates in kbit/s of libsndfile's compression levels 0 and 1, measured from the length of its files.
MP3_RATE, MP3_KBPS = 22_050, (160, 8)
OPUS_RATE, OPUS_KBPS = 48_000, (256, 6)
N_FFT = 2048
MIN_ENCODED = 1152  # samples; libsndfile cannot read the files that it writes of a few


def white_noise(waveform: torch.Tensor, snr_db: float, generator: torch.Generator) -> torch.Tensor:
    """Adds Gaussian noise at a signal-to-noise ratio in dB, over the clip's mean power."""
    return mix(waveform, torch.randn(waveform.shape, generator=generator), snr_db)


def mix(waveform: torch.Tensor, noise: torch.Tensor, snr_db: float) -> torch.Tensor:
    """Adds `noise` `(T',)`, repeated or cut to length, at a signal-to-noise ratio in dB. Silence is unchanged."""
    if not (waveform.any() and noise.any()):
        return waveform
    noise = noise.repeat(math.ceil(len(waveform) / len(noise)))[: len(waveform)]
    ratio = waveform.square().mean().sqrt() / noise.square().mean().sqrt()
    return waveform + noise * (ratio * 10 ** (-snr_db / 20))


def babble(voices: list[torch.Tensor], length: int) -> torch.Tensor:
    """Returns the sum `(length,)` of voices of equal power, each repeated or cut to length."""
    voices = [voice / voice.square().mean().sqrt().clamp(min=1e-8) for voice in voices]
    return torch.stack([voice.repeat(math.ceil(length / len(voice)))[:length] for voice in voices]).sum(0)


def reverberate(waveform: torch.Tensor, sampling_rate: int, rt60_s: float, generator: torch.Generator) -> torch.Tensor:
    """
    Adds the reverberation of a room with reverberation time `rt60_s`: convolves the clip with exponentially decaying
    noise (Polack's model), whose power equals that of the direct sound before it. The clip's power is preserved.
    """
    time = torch.arange(1, 1 + round(rt60_s * sampling_rate)) / sampling_rate
    tail = torch.randn(time.shape, generator=generator) * torch.exp(-SPEED_OF_DECAY * time / rt60_s)
    response = torch.cat([torch.ones(1), tail / tail.square().sum().sqrt()])
    wet = torch.from_numpy(fftconvolve(waveform.numpy(), response.numpy()))[: len(waveform)]
    return wet * (waveform.square().mean().sqrt() / wet.square().mean().sqrt().clamp(min=1e-8))


def telephone(waveform: torch.Tensor, sampling_rate: int, mu_law: bool = False) -> torch.Tensor:
    """Limits the band to 300 to 3,400 Hz at 8 kHz and, with `mu_law`, encodes samples in 8 bits (G.711)."""
    band = np.concatenate(
        [
            butter(2, frequency, kind, fs=TELEPHONE_RATE, output="sos")
            for frequency, kind in zip(TELEPHONE_HZ, ("highpass", "lowpass"), strict=True)
        ]
    )
    narrow = _resample(waveform, sampling_rate, TELEPHONE_RATE)
    if len(narrow):  # a few samples at a high rate become none
        narrow = torch.from_numpy(sosfilt(band, narrow.numpy()).astype(np.float32)).clamp(-1, 1)
    if mu_law:
        narrow = _through_file(narrow, TELEPHONE_RATE, TELEPHONE_RATE, {"format": "WAV", "subtype": "ULAW"})
    return _fit(_resample(narrow, TELEPHONE_RATE, sampling_rate), len(waveform))


def through_rate(waveform: torch.Tensor, sampling_rate: int, rate: int) -> torch.Tensor:
    """Resamples to `rate` and back, which removes frequencies above half of it."""
    return _fit(_resample(_resample(waveform, sampling_rate, rate), rate, sampling_rate), len(waveform))


def mp3(waveform: torch.Tensor, sampling_rate: int, kbps: float) -> torch.Tensor:
    """Encodes as mp3 of a constant bit rate (8 to 160 kbit/s) at 22.05 kHz, and decodes."""
    level = _level(kbps, *MP3_KBPS)
    form = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": level}
    return _through_file(waveform, sampling_rate, MP3_RATE, form)


def opus(waveform: torch.Tensor, sampling_rate: int, kbps: float) -> torch.Tensor:
    """Encodes as Opus (6 to 256 kbit/s), and decodes."""
    form = {"format": "OGG", "subtype": "OPUS", "compression_level": _level(kbps, *OPUS_KBPS)}
    return _through_file(waveform, sampling_rate, OPUS_RATE, form)


def vorbis(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Encodes as Ogg Vorbis at libsndfile's default quality, and decodes."""
    return _through_file(waveform, sampling_rate, sampling_rate, {"format": "OGG", "subtype": "VORBIS"})


def clip_loudest(waveform: torch.Tensor, share: float) -> torch.Tensor:
    """Clips the loudest `share` of the samples at the level of the quietest of them."""
    level = waveform.abs().sort().values[int(len(waveform) * (1 - share))]
    return waveform.clamp(-level, level)


def gain(waveform: torch.Tensor, db: float) -> torch.Tensor:
    """Amplifies by `db` and clips at full scale, as any converter does."""
    return (waveform * 10 ** (db / 20)).clamp(-1, 1)


def speed(waveform: torch.Tensor, sampling_rate: int, factor: float) -> torch.Tensor:
    """Returns the waveform `factor` times as fast, `(T / factor,)`, with pitch and formants shifted likewise."""
    return _resample(waveform, factor * sampling_rate, sampling_rate)


def pitch(waveform: torch.Tensor, sampling_rate: int, semitones: float) -> torch.Tensor:
    """Shifts pitch and formants by `semitones` without changing the duration: stretches the waveform by a phase
    vocoder, then resamples it to its length."""
    factor = 2 ** (semitones / 12)
    window, hop = torch.hann_window(N_FFT), N_FFT // 4
    long_enough = _fit(waveform, max(N_FFT, len(waveform)))
    spectrum = torch.stft(long_enough, N_FFT, hop, window=window, pad_mode="constant", return_complex=True)
    longer = torch.istft(phase_vocoder(spectrum, 1 / factor), N_FFT, hop, window=window)
    return _fit(_resample(longer, factor, 1), len(waveform))


def phase_vocoder(spectrum: torch.Tensor, rate: float) -> torch.Tensor:
    """
    Changes the speed of a short-time Fourier transform `(bins, T)`, whose hop is a quarter of its window, by `rate` at
    the same pitch: `(bins, ceil(T / rate))`. The values are those of `librosa.phase_vocoder` (whose first call in a
    process compiles for ten seconds): magnitudes between two frames are interpolated, phases accumulated.
    """
    steps = torch.arange(0, spectrum.shape[-1], rate, dtype=torch.float64)
    frames, share = steps.long(), (steps % 1).float()
    padded = pad(spectrum, (0, 2))
    before, after = padded[:, frames], padded[:, frames + 1]
    bins = len(spectrum)
    expected = torch.arange(bins, dtype=torch.float64)[:, None] * (math.pi / 2)  # in a hop
    turn = after.angle().double() - before.angle() - expected
    turn += expected - 2 * math.pi * torch.round(turn / (2 * math.pi))
    phase = spectrum[:, :1].angle() + turn.cumsum(-1) - turn
    return torch.polar((1 - share) * before.abs() + share * after.abs(), phase.float())


def _level(kbps: float, highest: float, lowest: float) -> float:
    if not lowest <= kbps <= highest:
        raise ValueError(f"{kbps} kbit/s is not available: choose from {lowest} to {highest}.")
    return min(0.999, (highest - kbps) / (highest - lowest))


def _through_file(waveform: torch.Tensor, sampling_rate: int, rate: int, form: dict) -> torch.Tensor:
    file, samples = io.BytesIO(), _resample(waveform, sampling_rate, rate).clamp(-1, 1)
    soundfile.write(file, _fit(samples, max(MIN_ENCODED, len(samples))).numpy(), rate, **form)
    file.seek(0)
    decoded, rate = soundfile.read(file, dtype="float32")
    return _fit(_resample(torch.from_numpy(decoded), rate, sampling_rate), len(waveform))


def _resample(waveform: torch.Tensor, rate: float, new_rate: float) -> torch.Tensor:
    return torch.from_numpy(soxr.resample(waveform.numpy(), rate, new_rate, quality="HQ"))


def _fit(waveform: torch.Tensor, length: int) -> torch.Tensor:
    return pad(waveform, (0, max(0, length - len(waveform))))[:length]
