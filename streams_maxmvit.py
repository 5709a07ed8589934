"""The spectrograms of a recording that comes in pieces, computed once along its length."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch

try:
    from .spectrograms_maxmvit import RMS_LENGTH, cqt_layout, overlapping, wavelets
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from spectrograms_maxmvit import RMS_LENGTH, cqt_layout, overlapping, wavelets

STEP_S = 20.0  # of a recording's spectrograms are computed at a time


class SpectrogramStream:
    """
    The spectrograms of a recording that comes in pieces, computed once, of which stretches are cut in the order of
    their starts. Memory does not grow with the recording.

    Args:
        pieces (`Iterator[np.ndarray]`): The recording at the extractor's rate.
        feature_extractor (`MaxMViTFeatureExtractor`): With `backend="torch"`.
        device (`torch.device`): Where to compute.
    """

    def __init__(self, pieces: Iterator[np.ndarray], feature_extractor: Any, device: torch.device):
        self.pieces = pieces
        self.extractor = feature_extractor
        self.device = device
        self.hops = feature_extractor.hops
        unit, rate = common_hop(feature_extractor), feature_extractor.sampling_rate
        _, lengths, _ = wavelets(*feature_extractor.cqt_parameters)
        longest = max(lengths.max(), feature_extractor.mel_n_fft)  # a frame hears half of it on either side
        self.margin = unit * math.ceil(longest / unit)
        self.step = unit * math.ceil(STEP_S * rate / unit)
        self.samples, self.first = np.zeros(0, np.float32), 0  # what is kept of the recording, and from which sample
        self.frames: dict[str, torch.Tensor] = {}
        self.begin, self.end, self.is_over = 0, 0, False  # the samples whose frames are kept

    def cut(self, start: int, length: int) -> dict[str, torch.Tensor]:
        """The frames of `length` samples from `start` on, as the extractor's `cut` has them."""
        while self.end < start + length and not self.is_over:
            self._extend()
        self._forget(start)
        stretch = {}
        for name, db in self.frames.items():
            hop = self.hops[name]
            first = min(round(start / hop) - self.begin // hop, db.shape[-1] - 1)
            stretch[name] = db[..., first : first + 1 + length // hop]
        return stretch

    def _extend(self) -> None:
        """Computes the frames of one more step."""
        reached = self.end + self.step + self.margin
        parts, held = [self.samples], self.first + len(self.samples)
        while held < reached and (piece := next(self.pieces, None)) is not None:
            parts.append(piece)
            held += len(piece)
        self.samples, self.is_over = np.concatenate(parts), held < reached
        here = self.samples if self.is_over else self.samples[: reached - self.first]
        spectrograms = self.extractor.spectrograms(here, device=self.device)[0]
        before, steps = self.end - self.first, None if self.is_over else self.step
        for name, db in spectrograms.items():
            hop = self.hops[name]
            new = db[..., before // hop :] if steps is None else db[..., before // hop : (before + steps) // hop]
            self.frames[name] = torch.cat([self.frames[name], new], dim=-1) if name in self.frames else new
        self.end = held if self.is_over else self.end + self.step
        kept = max(self.first, self.end - self.margin)
        self.samples, self.first = self.samples[kept - self.first :], kept

    def _forget(self, start: int) -> None:
        """Drops the frames before `start`, some seconds at a time."""
        if start - self.begin > 2 * self.step:
            passed = (start - self.begin) // self.step * self.step - self.step
            self.frames = {name: db[..., passed // self.hops[name] :].clone() for name, db in self.frames.items()}
            self.begin += passed


def common_hop(feature_extractor: Any) -> int:
    """Samples after which a frame of each of a clip's spectrograms begins."""
    return math.lcm(*(Fraction(hop).numerator for hop in feature_extractor.hops.values()))


def stream_blocks(
    extractor: Any, pieces: Iterable[np.ndarray], device: str | torch.device, block_s: float
) -> Iterator[dict[str, torch.Tensor]]:
    """See [`MaxMViTFeatureExtractor.stream`]."""
    hop, hops = common_hop(extractor), extractor.hops
    _, cqt_margin, _, _ = cqt_layout(extractor.min_length, *extractor.cqt_parameters)
    reach = max(cqt_margin * extractor.cqt_hop_length, extractor.mel_n_fft // 2, RMS_LENGTH // 2, extractor.min_length)
    margin = math.ceil(reach / hop) * hop
    block = max(margin, round(block_s * extractor.sampling_rate / hop) * hop)
    for samples, begin, is_last in overlapping(pieces, block, margin):
        (seen,) = extractor.spectrograms(samples, device)
        end = None if is_last else begin + block
        yield {name: db[..., begin // hops[name] : end and end // hops[name]] for name, db in seen.items()}


def twice(pieces: Iterator[np.ndarray]) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """The pieces for two who read them in turns. `itertools.tee` keeps up to 57 that both have read."""

    def read(own: deque[np.ndarray], others: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            if own:
                yield own.popleft()
            elif (piece := next(pieces, None)) is not None:
                others.append(piece)
                yield piece
            else:
                return

    one: deque[np.ndarray] = deque()
    other: deque[np.ndarray] = deque()
    return read(one, other), read(other, one)


__all__ = ["SpectrogramStream", "stream_blocks", "twice"]
