"""Altered copies of training clips, with random changes of voice, room, noise, level and channel."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ser.data import corruptions

SPEEDS = (0.9, 0.95, 1.05, 1.1)
SEMITONES = (-2.0, -1.0, 1.0, 2.0)

Choice = TypeVar("Choice")


class Draw:
    """Draws uniform random numbers from a generator of its own."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def one_of(self, choices: tuple[Choice, ...]) -> Choice:
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]


def background(waveform: torch.Tensor, rate: int, draw: Draw) -> torch.Tensor:
    """Adds steady noise at a signal-to-noise ratio of 5 to 25 dB, from white noise to the rumble of a room: its power
    falls by 0 to 6 dB per octave."""
    spectrum = torch.fft.rfft(torch.randn(waveform.shape, generator=draw.generator))
    spectrum = spectrum / torch.arange(1, len(spectrum) + 1) ** draw.between(0.0, 1.0)
    return corruptions.mix(waveform, torch.fft.irfft(spectrum, len(waveform)), draw.between(5.0, 25.0))


def room(waveform: torch.Tensor, rate: int, draw: Draw) -> torch.Tensor:
    return corruptions.reverberate(waveform, rate, draw.between(0.15, 0.8), draw.generator)


def clipping(waveform: torch.Tensor, rate: int, draw: Draw) -> torch.Tensor:
    return corruptions.clip_loudest(waveform, draw.between(0.005, 0.05))


def loudness(waveform: torch.Tensor, rate: int, draw: Draw) -> torch.Tensor:
    return corruptions.gain(waveform, draw.between(-12.0, 12.0))


def channel(waveform: torch.Tensor, rate: int, draw: Draw) -> torch.Tensor:
    """Applies one of: the telephone band, the same with mu-law, mp3 at 8 to 64 kbit/s, Opus at 6 to 32 kbit/s."""
    kind = draw.one_of(("telephone", "mu-law", "mp3", "opus"))
    if kind == "mp3":
        return corruptions.mp3(waveform, rate, draw.between(8.0, 64.0))
    if kind == "opus":
        return corruptions.opus(waveform, rate, draw.between(6.0, 32.0))
    return corruptions.telephone(waveform, rate, mu_law=kind == "mu-law")


def tempo(waveform: torch.Tensor, rate: int, draw: Draw) -> torch.Tensor:
    """Changes speed and pitch together (Ko et al. 2015, Audio augmentation for speech recognition)."""
    return corruptions.speed(waveform, rate, draw.one_of(SPEEDS))


def pitch(waveform: torch.Tensor, rate: int, draw: Draw) -> torch.Tensor:
    return corruptions.pitch(waveform, rate, draw.one_of(SEMITONES))


Link = Callable[[torch.Tensor, int, Draw], torch.Tensor]
VOICE: tuple[tuple[Link, float], ...] = ((tempo, 0.4), (pitch, 0.3))
RECORDING: tuple[tuple[Link, float], ...] = (
    (room, 0.5), (background, 0.5), (loudness, 0.5), (clipping, 0.2), (channel, 0.5),
)  # fmt: skip
CHAINS = {"all": VOICE + RECORDING, "voice": VOICE, "recording": RECORDING}
"""Name -> links in the order in which they are applied, each with its probability."""


@dataclass(frozen=True)
class WaveformCopies:
    """
    Altered copies of clips. Each link of the chain is applied to some of the copies, with random strength. A copy
    depends only on the clip's sound, the copy's number, the chain and the seed.

    Args:
        count (`int`): Copies of every clip.
        chain (`str`, defaults to `"all"`): `"voice"` (speed, pitch), `"recording"` (room, background noise, gain,
            clipping, and telephone, mu-law, mp3 or Opus), or `"all"`, one after the other.
        seed (`int`, defaults to 0): Random seed.

    Raises:
        ValueError: There are fewer copies than one, or the chain is unknown.
    """

    count: int
    chain: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} must be at least 1.")
        if self.chain not in CHAINS:
            raise ValueError(f"chain={self.chain!r} is unknown: choose one of {', '.join(CHAINS)}.")

    def keys(self, clip_key: str) -> list[str]:
        """Returns the cache keys of a clip's copies, from the clip's key and everything that affects its copies."""
        libraries = [version(name) for name in ("scipy", "soundfile", "soxr")]
        digest = hashlib.sha1(repr((clip_key, self.chain, self.seed, libraries)).encode())
        for source in (__file__, corruptions.__file__):
            digest.update(Path(source).read_bytes())
        return [f"{digest.hexdigest()}-{number}" for number in range(1, self.count + 1)]

    def make(self, waveform: np.ndarray, sampling_rate: int, number: int) -> np.ndarray:
        """Returns copy `number`, from 1 on, of a waveform `(T,)`; a change of speed changes its length."""
        sound = hashlib.sha1(waveform.tobytes()).hexdigest()
        digest = hashlib.blake2b(repr((self.seed, sound, number)).encode(), digest_size=8).digest()
        draw = Draw(int.from_bytes(digest, "little") >> 1)
        altered = torch.from_numpy(np.array(waveform, np.float32))
        for link, share in CHAINS[self.chain]:
            if draw.between(0, 1) < share:
                altered = link(altered, sampling_rate, draw)
        return altered.numpy()
