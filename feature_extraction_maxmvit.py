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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from transformers import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

try:
    from .spectrograms_maxmvit import (
        C1,
        GPU_SEGMENTS,
        MIN_POWER,
        RMS_LENGTH,
        cqt_layout,
        cqt_magnitude,
        decibels,
        frame_power,
        mel_power,
        wavelets,
    )
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from spectrograms_maxmvit import (
        C1,
        GPU_SEGMENTS,
        MIN_POWER,
        RMS_LENGTH,
        cqt_layout,
        cqt_magnitude,
        decibels,
        frame_power,
        mel_power,
        wavelets,
    )

logger = logging.get_logger(__name__)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LOUDEST = 1e6  # a waveform that reaches further is scaled to 1, lest its power overflow float32


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

    Three steps: `spectrograms` of waveforms, computed once and worth keeping; `images` of spectrograms, in [0, 1],
    cheap enough to be drawn anew each time; `normalize`, which makes three ImageNet-normalised channels of them.
    Calling the extractor does all three, `extract` the first two. A clip's images do not depend on the clips beside
    it. On a CPU it computes in one thread, whatever torch is set to.

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
        wavelets(*self._cqt_parameters)  # refuses bins above half the sampling rate

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

    def extract(self, waveforms, device: str | torch.device = "cpu") -> BatchFeature:
        """The images before normalisation: `images` of `spectrograms`.

        Args:
            waveforms: as `raw_speech` of `__call__`, at `self.sampling_rate`.
            device (`str`, defaults to `"cpu"`): where the torch back end computes and leaves the images.

        Returns:
            `BatchFeature` with `cqt_values` and `mel_values`, float32 tensors `(B, 1, image_size, image_size)`.

        Raises:
            ValueError: an item is empty, not one-dimensional, or holds NaN or infinity; the message says which.
        """
        return self.images(self.spectrograms(waveforms, device=device))

    @torch.no_grad()
    @_one_thread()
    def spectrograms(self, waveforms, device: str | torch.device = "cpu") -> list[dict[str, torch.Tensor]]:
        """What is computed once and can be kept: all that `images` are drawn from, at its native time resolution.

        Args:
            waveforms: as `raw_speech` of `__call__`, at `self.sampling_rate`.
            device (`str`, defaults to `"cpu"`): where the torch back end computes and leaves the spectrograms.

        Returns:
            `list[dict[str, torch.Tensor]]`, one per clip of T samples, each with three float32 tensors in dB re an
            amplitude of 1, floored at -100 dB:

            - `cqt`, `(cqt_n_bins, 1 + T // cqt_hop_length)`: magnitude of the constant-Q transform;
            - `mel`, `(n_mels, 1 + T // mel_hop_length)`: power of the Mel spectrogram;
            - `rms`, `(1 + T // mel_hop_length,)`: level of the waveform around each Mel frame, the root mean square
              of 2,048 samples as `librosa.feature.rms` and `librosa.effects.trim` have it.

        Raises:
            ValueError: an item is empty, not one-dimensional, or holds NaN or infinity; the message says which.
        """
        device = torch.device(device)
        waveforms = [self._prepare(waveform, i) for i, waveform in enumerate(_as_list(waveforms))]
        compute = self._librosa_spectrograms if self.backend == "librosa" else self._torch_spectrograms
        clips: list[dict[str, torch.Tensor]] = [{} for _ in waveforms]
        # Inside a training loop's autocast the filter bank would be multiplied in bfloat16.
        with torch.autocast(device.type, enabled=False):
            for group in self._groups(waveforms, device):
                batch = [waveforms[i].to(device) for i in group]
                batch, turned_down = _finite(torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), group)
                batches = compute(batch)
                for row, i in enumerate(group):
                    frames = self._frames(len(waveforms[i]))
                    clips[i] = {name: db[row, ..., : frames[name]] for name, db in batches.items()}
                    if turned_down[row]:
                        clips[i] = {name: db + turned_down[row] for name, db in clips[i].items()}
        return clips

    def cut(self, spectrogram: Mapping[str, torch.Tensor], start: float, end: float) -> dict[str, torch.Tensor]:
        """The stretch from `start` to `end`: views of as many frames as a waveform of this length has, from the one
        nearest to `start` on, where the clip goes that far; one frame at least.

        Args:
            spectrogram: one clip, from `spectrograms`.
            start (`float`): in seconds.
            end (`float`): in seconds.

        Raises:
            ValueError: `end` is not after `start`, or `start` is not within the clip.
        """
        if not end > start:
            raise ValueError(f"a stretch from {start} to {end} seconds does not work: its end comes after its start")
        stretch = {}
        for name, db in spectrogram.items():
            hop = self.cqt_hop_length if name == "cqt" else self.mel_hop_length
            first, frames = round(start * self.sampling_rate / hop), db.shape[-1]
            if not 0 <= first <= frames:
                seconds = (frames - 1) * hop / self.sampling_rate
                raise ValueError(f"start={start} does not lie within the clip's {seconds:.3f} seconds")
            first = min(first, frames - 1)
            # Seconds come from whole samples: without the rounding, 3 x 0.1 s would be a sample short of its frames.
            stretch[name] = db[..., first : first + 1 + round((end - start) * self.sampling_rate) // hop]
        return stretch

    @torch.no_grad()
    def images(self, spectrograms: Sequence[Mapping[str, torch.Tensor]]) -> BatchFeature:
        """Pictures of spectrograms, before normalisation: one channel, in [0, 1]. A fraction of a millisecond each.

        Args:
            spectrograms: clips from `spectrograms` or `cut`, any float type, on any device; left as they are.

        Returns:
            `BatchFeature` with `cqt_values` and `mel_values`, float32 tensors `(B, 1, image_size, image_size)`.

        Raises:
            ValueError: there is no clip.
        """
        if not len(spectrograms):
            raise ValueError("no spectrogram given: the list is empty")
        images = [[self._image(spectrogram[name].float()) for spectrogram in spectrograms] for name in ("cqt", "mel")]
        cqt, mel = map(torch.cat, images)
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
            frames, _, size, step = cqt_layout(len(waveform), *self._cqt_parameters)
            groups[size if frames <= step else -i - 1].append(i)
        return [group[i : i + GPU_SEGMENTS] for group in groups.values() for i in range(0, len(group), GPU_SEGMENTS)]

    def _frames(self, samples: int) -> dict[str, int]:
        """How many frames of each spectrogram a clip has."""
        mel = 1 + samples // self.mel_hop_length
        return {"cqt": cqt_layout(samples, *self._cqt_parameters)[0], "mel": mel, "rms": mel}

    def _torch_spectrograms(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "cqt": decibels(cqt_magnitude(batch, *self._cqt_parameters).square_()),
            "mel": decibels(mel_power(batch, self.sampling_rate, self.mel_n_fft, self.mel_hop_length, self.n_mels)),
            "rms": decibels(frame_power(batch, self.mel_hop_length)),
        }

    def _librosa_spectrograms(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
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
        rms = librosa.feature.rms(y=y, frame_length=RMS_LENGTH, hop_length=self.mel_hop_length)[0]
        spectrograms = {
            "cqt": librosa.amplitude_to_db(np.abs(cqt), amin=MIN_POWER**0.5, top_db=None),
            "mel": librosa.power_to_db(mel, amin=MIN_POWER, top_db=None),
            "rms": librosa.amplitude_to_db(rms, amin=MIN_POWER**0.5, top_db=None),
        }
        return {name: torch.from_numpy(db)[None].to(batch.device) for name, db in spectrograms.items()}

    def _image(self, db: torch.Tensor) -> torch.Tensor:
        """dB below the clip's maximum, floored at -top_db, min-max to [0, 1], resized; silence becomes 0.

        Args:
            db (`torch.Tensor` of shape `(bins, T)`).

        Returns:
            `torch.Tensor` of shape `(1, 1, image_size, image_size)`.
        """
        low, top = db.aminmax()
        low = torch.maximum(low, top - self.top_db)
        image = (db - low).clamp_(min=0).div_(torch.where(top > low, top - low, 1))
        return F.interpolate(image[None, None], size=(self.image_size, self.image_size), mode="bilinear")


def _as_list(waveforms) -> list:
    """One waveform or many -> a list of waveforms."""
    if isinstance(waveforms, (np.ndarray, torch.Tensor)):
        return list(waveforms) if waveforms.ndim == 2 else [waveforms]
    if not isinstance(waveforms, (list, tuple)):
        raise ValueError(f"expected a waveform or a list of waveforms, got {type(waveforms).__name__}")
    if not len(waveforms):
        raise ValueError("no waveform given: the list is empty")
    return [waveforms] if np.isscalar(waveforms[0]) else list(waveforms)


def _finite(batch: torch.Tensor, items: list[int]) -> tuple[torch.Tensor, list[float]]:
    """Refuses NaN and infinity, by item; scales to 1 what is too loud for float32 powers, and says by how many dB."""
    low, high = batch.aminmax(dim=1)
    peaks = torch.maximum(-low, high)  # NaN and infinity come through
    turned_down = []
    for item, peak in zip(items, peaks.tolist(), strict=True):
        if not math.isfinite(peak):
            raise ValueError(f"item {item} holds NaN or infinite samples")
        turned_down.append(20 * math.log10(peak) if peak > LOUDEST else 0.0)
    return batch / torch.where(peaks > LOUDEST, peaks, 1)[:, None] if any(turned_down) else batch, turned_down


MaxMViTFeatureExtractor.register_for_auto_class()


__all__ = ["MaxMViTFeatureExtractor"]
