"""What happens to speech on its way to a microphone and from there: noise, rooms, telephones, codecs, levels.

Every function takes a waveform `(T,)`, float32 in [-1, 1], and gives one of the same length. Randomness is that of the
`torch.Generator` given. Kinds and strengths follow Robuser (noise, reverberation, clipping, mp3; openreview.net
NzrqCcqdbF), with telephone, mu-law and Opus besides.
"""

import io
import math
from fractions import Fraction

import soundfile
import torch
import torchaudio.functional as AF
from torch.nn.functional import pad

SPEED_OF_DECAY = math.log(1000)  # the amplitude falls by 60 dB within RT60
TELEPHONE_HZ, TELEPHONE_RATE = (300, 3400), 8_000
# What libsndfile makes of a compression level from 0 to 1, in kbit/s; measured from the length of its files.
MP3_RATE, MP3_KBPS = 22_050, (160, 8)
OPUS_RATE, OPUS_KBPS = 48_000, (256, 6)
N_FFT = 2048


def white_noise(waveform: torch.Tensor, snr_db: float, generator: torch.Generator) -> torch.Tensor:
    """Adds Gaussian noise at a signal-to-noise ratio in dB, over the clip's mean power."""
    return mix(waveform, torch.randn(waveform.shape, generator=generator), snr_db)


def mix(waveform: torch.Tensor, noise: torch.Tensor, snr_db: float) -> torch.Tensor:
    """Adds `noise` `(T',)`, repeated or cut to length, at a signal-to-noise ratio in dB. Silence stays as it is."""
    if not (waveform.any() and noise.any()):
        return waveform
    noise = noise.repeat(math.ceil(len(waveform) / len(noise)))[: len(waveform)]
    return AF.add_noise(waveform, noise, torch.tensor(float(snr_db)))


def babble(voices: list[torch.Tensor], length: int) -> torch.Tensor:
    """`(length,)`: voices that speak at once, each at the same power, repeated or cut to length."""
    voices = [voice / voice.square().mean().sqrt().clamp(min=1e-8) for voice in voices]
    return torch.stack([voice.repeat(math.ceil(length / len(voice)))[:length] for voice in voices]).sum(0)


def reverberate(waveform: torch.Tensor, sampling_rate: int, rt60_s: float, generator: torch.Generator) -> torch.Tensor:
    """
    A room of reverberation time `rt60_s`: the clip convolved with noise that decays exponentially (Polack's model),
    whose power equals that of the direct sound before it. The clip's own power is kept.
    """
    time = torch.arange(1, 1 + round(rt60_s * sampling_rate)) / sampling_rate
    tail = torch.randn(time.shape, generator=generator) * torch.exp(-SPEED_OF_DECAY * time / rt60_s)
    response = torch.cat([torch.ones(1), tail / tail.square().sum().sqrt()])
    wet = AF.fftconvolve(waveform, response)[: len(waveform)]
    return wet * (waveform.square().mean().sqrt() / wet.square().mean().sqrt().clamp(min=1e-8))


def telephone(waveform: torch.Tensor, sampling_rate: int, mu_law: bool = False) -> torch.Tensor:
    """The band from 300 to 3,400 Hz at 8 kHz; with `mu_law` in 8 bits a sample (G.711) too."""
    low, high = TELEPHONE_HZ
    narrow = AF.resample(waveform, sampling_rate, TELEPHONE_RATE)
    narrow = AF.lowpass_biquad(AF.highpass_biquad(narrow, TELEPHONE_RATE, low), TELEPHONE_RATE, high)
    if mu_law:
        narrow = AF.mu_law_decoding(AF.mu_law_encoding(narrow.clamp(-1, 1), 256), 256)
    return _fit(AF.resample(narrow, TELEPHONE_RATE, sampling_rate), len(waveform))


def through_rate(waveform: torch.Tensor, sampling_rate: int, rate: int) -> torch.Tensor:
    """Resampled to `rate` and back: what lies above half of it is lost."""
    return _fit(AF.resample(AF.resample(waveform, sampling_rate, rate), rate, sampling_rate), len(waveform))


def mp3(waveform: torch.Tensor, sampling_rate: int, kbps: float) -> torch.Tensor:
    """Encoded as an mp3 of constant bit rate (8 to 160 kbit/s) at 22.05 kHz, and decoded."""
    level = _level(kbps, *MP3_KBPS)
    form = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": level}
    return _through_file(waveform, sampling_rate, MP3_RATE, form)


def opus(waveform: torch.Tensor, sampling_rate: int, kbps: float) -> torch.Tensor:
    """Encoded as Opus (6 to 256 kbit/s), and decoded."""
    form = {"format": "OGG", "subtype": "OPUS", "compression_level": _level(kbps, *OPUS_KBPS)}
    return _through_file(waveform, sampling_rate, OPUS_RATE, form)


def vorbis(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Encoded as Ogg Vorbis at libsndfile's default quality, and decoded."""
    return _through_file(waveform, sampling_rate, sampling_rate, {"format": "OGG", "subtype": "VORBIS"})


def clip_loudest(waveform: torch.Tensor, share: float) -> torch.Tensor:
    """Cuts the loudest `share` of the samples off at the level of the quietest among them."""
    level = waveform.abs().sort().values[int(len(waveform) * (1 - share))]
    return waveform.clamp(-level, level)


def gain(waveform: torch.Tensor, db: float) -> torch.Tensor:
    """Louder by `db`, cut off at full scale as any converter does."""
    return (waveform * 10 ** (db / 20)).clamp(-1, 1)


def speed(waveform: torch.Tensor, sampling_rate: int, factor: float) -> torch.Tensor:
    """`(T / factor,)`: played `factor` times as fast, so that pitch and formants rise with it."""
    return AF.speed(waveform, sampling_rate, factor)[0]


def pitch(waveform: torch.Tensor, sampling_rate: int, semitones: float) -> torch.Tensor:
    """Pitch and formants moved by `semitones` (to a hundredth or two), the duration kept (phase vocoder)."""
    # As `AF.pitch_shift`, but by a small fraction: its filters between 44,100 and 46,722 Hz take 5 s a clip.
    factor = Fraction(2 ** (semitones / 12)).limit_denominator(32)
    window, hop = torch.hann_window(N_FFT), N_FFT // 4
    spectrum = torch.stft(waveform, N_FFT, hop, window=window, pad_mode="constant", return_complex=True)
    advance = torch.linspace(0, math.pi * hop, len(spectrum))[:, None]
    longer = torch.istft(AF.phase_vocoder(spectrum, float(1 / factor), advance), N_FFT, hop, window=window)
    return _fit(AF.resample(longer, factor.numerator, factor.denominator), len(waveform))


def _level(kbps: float, highest: float, lowest: float) -> float:
    if not lowest <= kbps <= highest:
        raise ValueError(f"{kbps} kbit/s: from {lowest} to {highest} can be had.")
    return min(0.999, (highest - kbps) / (highest - lowest))


def _through_file(waveform: torch.Tensor, sampling_rate: int, rate: int, form: dict) -> torch.Tensor:
    file = io.BytesIO()
    soundfile.write(file, AF.resample(waveform, sampling_rate, rate).clamp(-1, 1).numpy(), rate, **form)
    file.seek(0)
    decoded, rate = soundfile.read(file, dtype="float32")
    return _fit(AF.resample(torch.from_numpy(decoded), rate, sampling_rate), len(waveform))


def _fit(waveform: torch.Tensor, length: int) -> torch.Tensor:
    return pad(waveform, (0, max(0, length - len(waveform))))[:length]
