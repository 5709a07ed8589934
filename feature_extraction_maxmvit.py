"""Waveform -> the pair of images that MaxMViT-MLP looks at: a constant-Q transform (CQT) and a Mel spectrogram.

| step | operation |
|---|---|
| pad | a clip under 4,096 samples is zero-padded at its end to 4,097 |
| CQT | magnitude, from C1, 84 bins, 12 per octave, hop 512, in dB below the clip's maximum, floored at -80 dB |
| Mel | power, 4,096-point Hann STFT, hop 256, 128 Slaney mels, in dB below the clip's maximum, floored at -80 dB |
| image | min-max to [0, 1], bilinear resize without antialiasing to 244 x 244; row 0 is the lowest frequency |

Two back ends compute it: `"librosa"` is this table written down literally, the reference; `"torch"` (the default) is
several times faster, follows the CQT's definition about a hundred times more closely, and runs on any device.
This file is shipped with every checkpoint and needs nothing of the repository it was written in.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from transformers import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

logger = logging.get_logger(__name__)

C1 = 32.70319566257483  # Hz, librosa.note_to_hz("C1")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_POWER = 1e-10  # librosa's `amin`: anything below counts as this much
LOUDEST = 1e6  # a waveform that reaches further is scaled to 1, lest its power overflow float32

# How far from its centre a wavelet's frequency response is kept, in units of 1 / (its length). A Hann window's side
# lobes fall as 1 / (pi x^3) of the peak, so this cuts at 4e-5. The strong low frequencies of speech lie in the tails
# of every wavelet, on both sides of 0 Hz.
RESPONSE_SUPPORT = 20
LONGEST_SEGMENT = 512  # CQT frames; longer clips are transformed piece by piece
CPU_STFT_FRAMES = 64  # frames whose spectra (1 MiB) stay in a core's cache between FFT and filter bank
GPU_STFT_FRAMES = 8192
GPU_SEGMENTS = 64


@lru_cache(maxsize=8)
def _wavelets(
    sampling_rate: int, fmin: float, n_bins: int, bins_per_octave: int, hop_length: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Frequencies in cycles per sample, fractional lengths in samples, and the factor librosa decimates by first.

    `librosa.cqt` decimates by a power of two where the highest wavelet leaves room (`__early_downsample_count`); the
    only trace of it in an exact transform is that the number of frames is counted on the decimated clip.
    """
    frequencies = librosa.cqt_frequencies(n_bins, fmin=fmin, bins_per_octave=bins_per_octave)
    ratio = 2.0 ** (2 / bins_per_octave)
    lengths, cutoff = librosa.filters.wavelet_lengths(
        freqs=frequencies, sr=sampling_rate, alpha=(ratio - 1) / (ratio + 1)
    )
    if cutoff > sampling_rate / 2:
        raise ValueError(
            f"the highest of {n_bins} CQT bins reaches {cutoff:.0f} Hz, above half the sampling rate ({sampling_rate} "
            "Hz): lower cqt_n_bins or cqt_fmin"
        )
    octaves = math.ceil(n_bins / bins_per_octave)
    twos_in_hop = (hop_length & -hop_length).bit_length() - 1
    spare = math.ceil(math.log2(sampling_rate / 2 / cutoff)) - 2
    return frequencies / sampling_rate, lengths, 2 ** max(0, min(spare, twos_in_hop - octaves + 1))


def _transform_frames(frames: int) -> int:
    """The next of a few sizes (ratio about 1.12) that make fast FFTs; MKL is slow at powers of two."""
    octave = 1
    while 64 * octave < frames:
        octave *= 2
    return next(size * octave for size in (35, 40, 45, 50, 56, 63, 70) if size * octave >= frames)


@lru_cache(maxsize=16)
def _responses(
    size: int,
    sampling_rate: int,
    fmin: float,
    n_bins: int,
    bins_per_octave: int,
    hop_length: int,
    device: torch.device,
) -> list[tuple[int, int, torch.Tensor]]:
    """Conjugate frequency responses of the wavelets on the grid of an FFT of `size * hop_length` points.

    Per octave: how many rows of `size` frequencies it needs below and above 0, and a tensor (bins, rows, size).

    A wavelet is a periodic Hann window w of L samples times exp(2 pi i f n), divided by its L1 norm (L / 2) and
    multiplied by sqrt(length) as `librosa.cqt(scale=True)` does. `librosa.filters.wavelet` makes every L odd,
    2 floor(length / 2) + 1, with the window's centre half a sample before n = 0. Around its centre the window is
    even, and its transform is real:

        W(v) = sin(v L / 2) (cot(v / 2) / 2 - cot(v / 2 - pi / L) / 4 - cot(v / 2 + pi / L) / 4),   v in rad/sample,

    the sum of three Dirichlet kernels that 1/2 + 1/2 cos(2 pi n / L) stands for. Half a sample of delay is the only
    phase that matters, as only magnitudes are read.
    """
    frequencies, lengths, _ = _wavelets(sampling_rate, fmin, n_bins, bins_per_octave, hop_length)
    octaves = []
    for first in range(0, n_bins, bins_per_octave):
        octave = slice(first, first + bins_per_octave)
        f, length = frequencies[octave, None], lengths[octave, None]
        taps = 2 * np.floor(length / 2) + 1
        below = max(0, math.ceil((RESPONSE_SUPPORT / length - f).max() * hop_length))  # rows of negative frequency
        above = min(math.ceil((RESPONSE_SUPPORT / length + f).max() * hop_length), hop_length // 2)
        grid = np.arange(-below * size, above * size) / (size * hop_length)
        v = 2 * np.pi * (grid - f)
        for pole in (0, -2 * np.pi / taps, 2 * np.pi / taps):  # removable: step beside them
            v = np.where(np.abs(v - pole) < 1e-9, pole + 1e-9, v)
        response = np.sin(v * taps / 2) * (
            0.5 / np.tan(v / 2) - 0.25 / np.tan(v / 2 - np.pi / taps) - 0.25 / np.tan(v / 2 + np.pi / taps)
        )
        response = response * np.sqrt(length) / (taps / 2) * np.exp(-1j * np.pi * grid) / hop_length
        response = torch.from_numpy(response).to(torch.complex64).view(-1, below + above, size)
        octaves.append((below, above, response.to(device)))
    return octaves


def cqt_magnitude(
    waveforms: torch.Tensor,
    sampling_rate: int = 44100,
    fmin: float = C1,
    n_bins: int = 84,
    bins_per_octave: int = 12,
    hop_length: int = 512,
) -> torch.Tensor:
    """Magnitude of the constant-Q transform: |sum_n y[t hop_length + n] conj(wavelet_k[n])|, zeros around the clip.

    The wavelets are those of `librosa.filters.wavelet`, L1-normalised and scaled by the root of their length. All
    frames of a bin come from one multiplication in the frequency domain. The real FFT of the zero-padded clip has
    N = M * hop_length points; times a wavelet's conjugate response, it is the spectrum of that bin at every sample.
    To read only every hop_length-th sample is to add up that spectrum modulo M (aliasing, wanted), and an inverse FFT
    of M points gives the frames. Long clips are cut into segments that overlap by the longest wavelet, so memory for
    spectra does not grow with the clip.

    Args:
        waveforms (`torch.Tensor` of shape `(B, T)`): float32.

    Returns:
        `torch.Tensor` of shape `(B, n_bins, frames)`, frames = 1 + T // hop_length as `librosa.cqt` counts them.
    """
    parameters = (sampling_rate, fmin, n_bins, bins_per_octave, hop_length)
    frames, margin, size, step = _cqt_layout(waveforms.shape[-1], *parameters)
    segments = math.ceil(frames / step)
    end = ((segments - 1) * step + size - margin) * hop_length
    padded = F.pad(waveforms, (margin * hop_length, end - waveforms.shape[-1]))
    rows = padded.unfold(-1, size * hop_length, step * hop_length).flatten(0, 1)
    responses = _responses(size, *parameters, waveforms.device)
    lowest, highest = max(below for below, _, _ in responses), max(above for _, above, _ in responses)
    pieces = []
    for part in rows.split(GPU_SEGMENTS if rows.is_cuda else 1):
        spectrum = torch.fft.rfft(part)
        spectrum = torch.cat([spectrum[:, 1 : lowest * size + 1].flip(1).conj(), spectrum[:, : highest * size]], dim=1)
        spectrum = spectrum.view(-1, 1, lowest + highest, size)
        folded = [
            (spectrum[:, :, lowest - below : lowest + above] * response).sum(2) for below, above, response in responses
        ]
        bins = torch.fft.ifft(torch.cat(folded, dim=1))
        pieces.append(bins[..., margin : margin + step].abs())
    pieces = torch.cat(pieces).unflatten(0, (len(waveforms), segments))
    return pieces.transpose(1, 2).flatten(2)[..., :frames]


def _cqt_layout(samples: int, *parameters: float) -> tuple[int, int, int, int]:
    """Frames of the clip, margin at each end of a segment, frames of the segment's FFT, frames it yields."""
    _, lengths, decimation = _wavelets(*parameters)
    hop_length = parameters[-1]
    frames = 1 + math.ceil(samples / decimation) // (hop_length // decimation)
    margin = math.ceil((lengths.max() / 2 + 1) / hop_length)
    size = _transform_frames(min(frames, max(LONGEST_SEGMENT, 4 * margin)) + 2 * margin)
    return frames, margin, size, size - 2 * margin


@lru_cache(maxsize=8)
def _mel_blocks(sampling_rate: int, n_fft: int, n_mels: int, device: torch.device) -> list[tuple[slice, torch.Tensor]]:
    """The Slaney filter bank of `librosa.filters.mel` in blocks of 16 mels: (columns of the spectrum, weights).

    A filter touches few frequencies, so blocks spare 9 of 10 products of the whole matrix. Each weight stands twice,
    for the square of the real and of the imaginary part. On a GPU the weights are float64: there a float32 product
    may be computed in TF32, whose 10 bits would show in the image.
    """
    bank = librosa.filters.mel(sr=sampling_rate, n_fft=n_fft, n_mels=n_mels)
    blocks = []
    for rows in np.array_split(bank, math.ceil(n_mels / 16)):
        used = np.flatnonzero(rows.any(axis=0))
        lo, hi = (used[0], used[-1] + 1) if len(used) else (0, 1)
        weights = torch.from_numpy(np.repeat(rows[:, lo:hi].T, 2, axis=0).copy())
        if device.type == "cuda":
            weights = weights.double()
        blocks.append((slice(2 * int(lo), 2 * int(hi)), weights.to(device)))
    return blocks


def mel_power(
    waveforms: torch.Tensor, sampling_rate: int = 44100, n_fft: int = 4096, hop_length: int = 256, n_mels: int = 128
) -> torch.Tensor:
    """Mel power spectrogram as `librosa.feature.melspectrogram(pad_mode="constant")` has it.

    Args:
        waveforms (`torch.Tensor` of shape `(B, T)`): float32.

    Returns:
        `torch.Tensor` of shape `(B, n_mels, 1 + T // hop_length)`.
    """
    window = torch.hann_window(n_fft, device=waveforms.device)
    frames = F.pad(waveforms, (n_fft // 2, n_fft // 2)).unfold(-1, n_fft, hop_length)
    blocks = _mel_blocks(sampling_rate, n_fft, n_mels, waveforms.device)
    mels = torch.empty(*frames.shape[:2], n_mels, device=waveforms.device)
    at_once = max(64, GPU_STFT_FRAMES // len(waveforms)) if waveforms.is_cuda else CPU_STFT_FRAMES
    for part, out in zip(frames.split(at_once, dim=1), mels.split(at_once, dim=1), strict=True):
        squares = torch.view_as_real(torch.fft.rfft(part * window)).square_().flatten(-2)
        first = 0
        for columns, weights in blocks:
            last = first + weights.shape[1]
            out[..., first:last] = squares[..., columns].to(weights.dtype) @ weights
            first = last
    return mels.transpose(1, 2)


def images_from_power(power: torch.Tensor, frames: Sequence[int], image_size: int, top_db: float) -> torch.Tensor:
    """dB below each clip's maximum, floored at -top_db, min-max to [0, 1], resized bilinearly; silence becomes 0.

    Args:
        power (`torch.Tensor` of shape `(B, bins, T)`): overwritten.
        frames (`Sequence[int]`): how many of the T frames belong to each clip.

    Returns:
        `torch.Tensor` of shape `(B, 1, image_size, image_size)`.
    """
    db = power.clamp_(min=MIN_POWER).log10_().mul_(10)
    if min(frames) < db.shape[-1]:  # what lies beyond a clip's end becomes its first value, which changes no extreme
        beyond = torch.arange(db.shape[-1], device=db.device) >= torch.tensor(frames, device=db.device)[:, None, None]
        db = torch.where(beyond, db[:, :1, :1], db)
    top = db.amax((1, 2), keepdim=True)
    torch.maximum(db, top - top_db, out=db)
    low = db.amin((1, 2), keepdim=True)
    db.sub_(low).div_(torch.where(top > low, top - low, 1))
    return torch.cat(
        [
            F.interpolate(image[None, None, :, :count], size=(image_size, image_size), mode="bilinear")
            for image, count in zip(db, frames, strict=True)
        ]
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """A clip is hundreds of steps of microseconds. Threads that share them wait for each other at every one, on a busy
    machine for longer than the work takes; cores are better used by processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class MaxMViTFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns mono waveforms into the CQT image and the Mel image of MaxMViT-MLP.

    `extract` gives one-channel images in [0, 1], `normalize` makes three ImageNet-normalised channels of them, and
    calling the extractor does both. A clip's images do not depend on the clips beside it. On a CPU it computes in one
    thread, whatever torch is set to.

    Any length is taken as it is, never cut: an hour becomes one image as wide as a second's. Spectra are computed in
    pieces, so an hour at 44.1 kHz (0.6 GB as float32) needs about 2 GB beyond the waveform. Who wants an answer for
    each stretch of a long recording cuts it into windows first.

    Args:
        sampling_rate (`int`, defaults to 44100): Hz, of every waveform given.
        min_length (`int`, defaults to 4096): shorter clips are zero-padded at their end to `min_length + 1` samples.
        cqt_fmin (`float`, defaults to 32.70319566257483): frequency of the lowest bin in Hz (C1).
        cqt_n_bins (`int`, defaults to 84): number of CQT bins.
        cqt_bins_per_octave (`int`, defaults to 12): CQT bins per octave.
        cqt_hop_length (`int`, defaults to 512): samples between CQT frames.
        mel_n_fft (`int`, defaults to 4096): length of the Mel STFT's Hann window, in samples.
        mel_hop_length (`int`, defaults to 256): samples between Mel frames.
        n_mels (`int`, defaults to 128): number of Mel bands (Slaney scale and norm, 0 Hz to half the sampling rate).
        top_db (`float`, defaults to 80.0): dynamic range kept below the clip's maximum, in dB.
        image_size (`int`, defaults to 244): height and width of the images.
        image_mean (`Sequence[float]`, defaults to ImageNet's): subtracted per channel by `normalize`.
        image_std (`Sequence[float]`, defaults to ImageNet's): divided by, per channel, by `normalize`.
        backend (`str`, defaults to `"torch"`): `"torch"`, or `"librosa"` for the literal reference (CPU only inside).

    Raises:
        ValueError: for parameters that cannot work together.
    """

    model_input_names = ["cqt_values", "mel_values"]

    def __init__(
        self,
        sampling_rate: int = 44100,
        min_length: int = 4096,
        cqt_fmin: float = C1,
        cqt_n_bins: int = 84,
        cqt_bins_per_octave: int = 12,
        cqt_hop_length: int = 512,
        mel_n_fft: int = 4096,
        mel_hop_length: int = 256,
        n_mels: int = 128,
        top_db: float = 80.0,
        image_size: int = 244,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        backend: str = "torch",
        **kwargs,
    ):
        kwargs = {"feature_size": 1, "padding_value": 0.0, "return_attention_mask": False} | kwargs
        super().__init__(sampling_rate=sampling_rate, **kwargs)
        self.min_length = min_length
        self.cqt_fmin = cqt_fmin
        self.cqt_n_bins = cqt_n_bins
        self.cqt_bins_per_octave = cqt_bins_per_octave
        self.cqt_hop_length = cqt_hop_length
        self.mel_n_fft = mel_n_fft
        self.mel_hop_length = mel_hop_length
        self.n_mels = n_mels
        self.top_db = top_db
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.backend = backend
        if backend not in ("torch", "librosa"):
            raise ValueError(f'backend must be "torch" or "librosa", got {backend!r}')
        for name in (
            "sampling_rate", "min_length", "cqt_fmin", "cqt_n_bins", "cqt_bins_per_octave", "cqt_hop_length",
            "mel_n_fft", "mel_hop_length", "n_mels", "top_db", "image_size",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if mel_n_fft % 2:
            raise ValueError(f"mel_n_fft must be even, got {mel_n_fft}")
        if len(self.image_mean) != len(self.image_std):
            raise ValueError("image_mean and image_std must have one value per channel each")
        _wavelets(*self._cqt_parameters)  # refuses bins above half the sampling rate

    @property
    def _cqt_parameters(self) -> tuple:
        return self.sampling_rate, self.cqt_fmin, self.cqt_n_bins, self.cqt_bins_per_octave, self.cqt_hop_length

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        device: str | torch.device = "cpu",
        **kwargs,
    ) -> BatchFeature:
        """`extract`, then `normalize`.

        Args:
            raw_speech: one mono waveform or a list of them, of any lengths: numpy arrays, torch tensors or lists of
                floats. A two-dimensional array is a batch of waveforms.
            sampling_rate (`int`, *optional*): of `raw_speech`, in Hz; checked against the extractor's.
            return_tensors (`str`, *optional*): `"pt"` for torch tensors, `"np"` or None for numpy arrays.
            device (`str`, defaults to `"cpu"`): where the torch back end computes and, with `"pt"`, leaves the result.
            kwargs: `padding` and its kin, which pipelines pass to every extractor; images need none of them.

        Returns:
            `BatchFeature` with `cqt_values` and `mel_values`, float32, each `(B, 3, image_size, image_size)`.

        Raises:
            ValueError: another sampling rate, or an item that is empty, not one-dimensional, or holds NaN or infinity.
        """
        if sampling_rate is None:
            logger.warning_once(
                f"Pass `sampling_rate` to {type(self).__name__}: without it, audio at another rate than "
                f"{self.sampling_rate} Hz goes unnoticed."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"This feature extractor works at {self.sampling_rate} Hz, the audio is at {sampling_rate} Hz: "
                f"resample it first, e.g. librosa.resample(y, orig_sr={sampling_rate}, target_sr={self.sampling_rate})"
            )
        images = self.extract(raw_speech, device=device)
        values = {name: self.normalize(image) for name, image in images.items()}
        if return_tensors != "pt":
            values = {name: value.cpu().numpy() for name, value in values.items()}
        return BatchFeature(values, tensor_type=return_tensors)

    @torch.no_grad()
    @_one_thread()
    def extract(self, waveforms, device: str | torch.device = "cpu") -> BatchFeature:
        """The images before normalisation: one channel, in [0, 1]; caches and workers carry this form.

        Args:
            waveforms: as `raw_speech` of `__call__`, at `self.sampling_rate`.
            device (`str`, defaults to `"cpu"`): where the torch back end computes and leaves the images.

        Returns:
            `BatchFeature` with `cqt_values` and `mel_values`, float32 tensors `(B, 1, image_size, image_size)`.

        Raises:
            ValueError: an item is empty, not one-dimensional, or holds NaN or infinity; the message says which.
        """
        device = torch.device(device)
        waveforms = [self._prepare(waveform, i) for i, waveform in enumerate(_as_list(waveforms))]
        pairs = [None] * len(waveforms)
        # Inside a training loop's autocast the filter bank would be multiplied in bfloat16.
        with torch.autocast(device.type, enabled=False):
            for group in self._groups(waveforms, device):
                batch = [waveforms[i].to(device) for i in group]
                batch = _finite(torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), group)
                compute = self._librosa_images if self.backend == "librosa" else self._torch_images
                cqt, mel = compute(batch, [len(waveforms[i]) for i in group])
                for i, *images in zip(group, cqt, mel, strict=True):
                    pairs[i] = images
        cqt, mel = (torch.stack(images) for images in zip(*pairs, strict=True))
        return BatchFeature({"cqt_values": cqt, "mel_values": mel})

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, 1 or 3, H, W)` in [0, 1], any float type -> `(B, 3, H, W)` float32, ImageNet-normalised."""
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None] for values in (self.image_mean, self.image_std)
        )
        return (images.float() - mean) / std

    def _prepare(self, waveform, index: int) -> torch.Tensor:
        try:
            if not isinstance(waveform, torch.Tensor):
                waveform = torch.from_numpy(np.require(waveform, np.float32, ["C", "W"]))
            waveform = waveform.detach().float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"item {index} is not a waveform of numbers: {error}") from error
        if waveform.ndim != 1:
            raise ValueError(
                f"item {index} has shape {tuple(waveform.shape)}: give mono waveforms of shape (samples,)"
            )
        if not len(waveform):
            raise ValueError(f"item {index} is empty")
        if len(waveform) < self.min_length:
            waveform = F.pad(waveform, (0, self.min_length + 1 - len(waveform)))
        return waveform

    def _groups(self, waveforms: list[torch.Tensor], device: torch.device) -> list[list[int]]:
        """Indices of clips computed together: on a GPU those whose transforms have one size, elsewhere one by one."""
        if device.type != "cuda" or self.backend == "librosa":
            return [[i] for i in range(len(waveforms))]
        groups = defaultdict(list)
        for i, waveform in enumerate(waveforms):
            frames, _, size, step = _cqt_layout(len(waveform), *self._cqt_parameters)
            groups[size if frames <= step else -i - 1].append(i)
        return [group[i : i + GPU_SEGMENTS] for group in groups.values() for i in range(0, len(group), GPU_SEGMENTS)]

    def _torch_images(self, batch: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        cqt_frames = [_cqt_layout(length, *self._cqt_parameters)[0] for length in lengths]
        mel_frames = [1 + length // self.mel_hop_length for length in lengths]
        cqt = cqt_magnitude(batch, *self._cqt_parameters).square_()
        cqt = images_from_power(cqt, cqt_frames, self.image_size, self.top_db)
        mel = mel_power(batch, self.sampling_rate, self.mel_n_fft, self.mel_hop_length, self.n_mels)
        return cqt, images_from_power(mel, mel_frames, self.image_size, self.top_db)

    def _librosa_images(self, batch: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        y = batch[0].cpu().numpy()
        cqt = librosa.cqt(
            y,
            sr=self.sampling_rate,
            fmin=self.cqt_fmin,
            n_bins=self.cqt_n_bins,
            bins_per_octave=self.cqt_bins_per_octave,
            hop_length=self.cqt_hop_length,
        )
        mel = librosa.feature.melspectrogram(
            y=y, sr=self.sampling_rate, n_fft=self.mel_n_fft, hop_length=self.mel_hop_length, n_mels=self.n_mels
        )
        images = []
        for db in (
            librosa.amplitude_to_db(np.abs(cqt), ref=np.max, top_db=self.top_db),
            librosa.power_to_db(mel, ref=np.max, top_db=self.top_db),
        ):
            spread = db.max() - db.min()
            image = torch.from_numpy((db - db.min()) / (spread if spread > 0 else 1))
            image = F.interpolate(image[None, None], size=(self.image_size, self.image_size), mode="bilinear")
            images.append(image.to(batch.device))
        return images[0], images[1]


def _as_list(waveforms) -> list:
    """One waveform or many -> a list of waveforms."""
    if isinstance(waveforms, (np.ndarray, torch.Tensor)):
        return list(waveforms) if waveforms.ndim == 2 else [waveforms]
    if not isinstance(waveforms, (list, tuple)):
        raise ValueError(f"expected a waveform or a list of waveforms, got {type(waveforms).__name__}")
    if not len(waveforms):
        raise ValueError("no waveform given: the list is empty")
    return [waveforms] if np.isscalar(waveforms[0]) else list(waveforms)


def _finite(batch: torch.Tensor, items: list[int]) -> torch.Tensor:
    """Refuses NaN and infinity, by item; scales what is too loud for float32 powers."""
    low, high = batch.aminmax(dim=1)
    peaks = torch.maximum(-low, high)  # NaN and infinity come through
    loudest = 0.0
    for item, peak in zip(items, peaks.tolist(), strict=True):
        if not math.isfinite(peak):
            raise ValueError(f"item {item} holds NaN or infinite samples")
        loudest = max(loudest, peak)
    return batch / torch.where(peaks > LOUDEST, peaks, 1)[:, None] if loudest > LOUDEST else batch


MaxMViTFeatureExtractor.register_for_auto_class()

__all__ = ["MaxMViTFeatureExtractor"]
