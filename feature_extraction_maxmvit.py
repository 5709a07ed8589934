"""Waveform -> the pair of images that MaxMViT-MLP looks at: a constant-Q transform (CQT) and a Mel spectrogram.

| step | operation |
|---|---|
| pad | a clip under 4,096 samples is zero-padded at its end to 4,097 |
| CQT | magnitude, from C1, 84 bins, 12 per octave, hop 512, in dB below the clip's maximum, floored at -80 dB |
| Mel | power, 4,096-point Hann STFT, hop 256, 128 Slaney mels, in dB below the clip's maximum, floored at -80 dB |
| image | min-max to [0, 1], bilinear resize without antialiasing to 244 x 244; row 0 is the lowest frequency |

Parameters change the last two steps; what they do is written in `images_maxmvit.py`.

Two back ends compute the spectrograms: `"librosa"` is this table written down literally, the reference; `"torch"` (the
default) is several times faster, follows the CQT's definition about a hundred times more closely, and runs on any
device. This file is shipped with every checkpoint and needs nothing of the repository it was written in.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from transformers import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

try:
    from .images_maxmvit import drawn, loud_frames, normalized, picture_settings
    from .keywords_maxmvit import (
        PADDING_KEYWORDS,
        SAVED_KEYWORDS,
        check_extractor,
        check_types,
        parameters_of,
        refuse_mistyped,
        refuse_unknown,
    )
    from .learnable_maxmvit import power_inputs
    from .spectrograms_maxmvit import C1, as_waveforms, spectrograms_of, stretch, wavelets
    from .speech_maxmvit import WAVEFORM, make_processor, resampled, speech_inputs
    from .streams_maxmvit import stream_blocks
    from .threads_maxmvit import one_thread
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from images_maxmvit import drawn, loud_frames, normalized, picture_settings
    from keywords_maxmvit import (
        PADDING_KEYWORDS,
        SAVED_KEYWORDS,
        check_extractor,
        check_types,
        parameters_of,
        refuse_mistyped,
        refuse_unknown,
    )
    from learnable_maxmvit import power_inputs
    from spectrograms_maxmvit import C1, as_waveforms, spectrograms_of, stretch, wavelets
    from speech_maxmvit import WAVEFORM, make_processor, resampled, speech_inputs
    from streams_maxmvit import stream_blocks
    from threads_maxmvit import one_thread

logger = logging.get_logger(__name__)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class MaxMViTFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns mono waveforms into the CQT image and the Mel image of MaxMViT-MLP.

    Three steps: `spectrograms` of waveforms, computed once and worth keeping; `images` of spectrograms, in [0, 1],
    cheap enough to be drawn anew each time; `normalize`, which makes three ImageNet-normalised channels of them.
    Calling the extractor does all three, `extract` the first two. A clip's images do not depend on the clips beside
    it. On a CPU it computes in one thread, whatever torch is set to.

    Any length is taken as it is, never cut: an hour becomes one image as wide as a second's. Spectra are computed in
    pieces, so an hour at 44.1 kHz (0.6 GB as float32) needs about 2 GB beyond the waveform.

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
        trim_db (`float`, *optional*): leading and trailing frames are cut where their level (root mean square of
            2,048 samples) is this many dB or more below the clip's loudest, as `librosa.effects.trim(top_db=trim_db)`
            does. Frames are cut, not samples: those at the new ends still see up to half a window beyond them.
        trim_margin (`float`, defaults to 0.05): seconds kept on each side of what `trim_db` leaves.
        level (`str`, defaults to `"clip"`): what 1 stands for in a picture. `"clip"`: the clip's own maximum.
            `"full_scale"`: the same level in every clip, so that loudness stays in the picture.
        top_db (`float`, defaults to 80.0): for `level="clip"`, the dynamic range kept below the maximum, in dB.
        full_scale_db (`Sequence[float]`, defaults to (-60.0, 40.0)): for `level="full_scale"`, what 0 and 1 stand for
            in dB, as `spectrograms` has them. The loudest Mel value of a RAVDESS clip lies between -10 and 44 (in 1 %
            of the clips over 39), the loudest CQT value between -25 and 23.
        mel_representation (`str`, defaults to `"log-mel"`): `"log-mel"`, or `"mfcc"` for its cepstrum; see
            `images_maxmvit.mfcc`.
        n_mfcc (`int`, defaults to 40): rows of the cepstrum, at most `n_mels`.
        channels (`str`, defaults to `"repeat"`): `"repeat"`: one picture, three times over once normalised.
            `"deltas"`: the picture, its change from frame to frame, and the change of that; see
            `images_maxmvit.with_deltas`.
        image_size (`int` or `Sequence[int]`, defaults to 244): height and width of the images, or both.
        image_mean (`Sequence[float]` or `dict`, defaults to ImageNet's): subtracted per channel by `normalize`; of
            backbones that were pretrained with different ones, a `dict` with one for `"cqt"` and one for `"mel"`.
        image_std (`Sequence[float]` or `dict`, defaults to ImageNet's): the divisor per channel of `normalize`.
        filter_bank (`str`, defaults to `"fixed"`): `"learnable"` for a model whose Mel filters are learnt, which is
            given the power of every frequency besides; see `learnable_maxmvit.py`.
        backend (`str`, defaults to `"torch"`): `"torch"`, or `"librosa"` for the literal reference (CPU only inside).
        speech_processor (`dict`, *optional*): for a model with a speech encoder, the settings of that checkpoint's own
            feature extractor, from `speech_maxmvit.read_processor`. What it hears is trimmed as the pictures are.

    Raises:
        ValueError: for a parameter of another type, or parameters that cannot work together.
    """

    model_input_names = [
        "cqt_values", "mel_values", "input_values", "attention_mask", "power_values", "power_lengths",
    ]  # fmt: skip

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
        trim_db: float | None = None,
        trim_margin: float = 0.05,
        level: str = "clip",
        top_db: float = 80.0,
        full_scale_db: Sequence[float] = (-60.0, 40.0),
        mel_representation: str = "log-mel",
        n_mfcc: int = 40,
        channels: str = "repeat",
        image_size: int | Sequence[int] = 244,
        image_mean: Sequence[float] | Mapping[str, Sequence[float]] = IMAGENET_MEAN,
        image_std: Sequence[float] | Mapping[str, Sequence[float]] = IMAGENET_STD,
        filter_bank: str = "fixed",
        backend: str = "torch",
        speech_processor: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        check_types(dict(locals()), MaxMViTFeatureExtractor.__init__.__annotations__)
        refuse_unknown(kwargs, SAVED_KEYWORDS, type(self))
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
        self.trim_db = trim_db
        self.trim_margin = trim_margin
        self.level = level
        self.top_db = top_db
        self.full_scale_db = list(full_scale_db)
        self.mel_representation = mel_representation
        self.n_mfcc = n_mfcc
        self.channels = channels
        self.image_size = image_size if isinstance(image_size, int) else list(image_size)
        self.image_mean = _by_branch(image_mean)
        self.image_std = _by_branch(image_std)
        self.filter_bank = filter_bank
        self.backend = backend
        self.speech_processor = speech_processor
        check_extractor(self)
        wavelets(*self.cqt_parameters)  # refuses bins above half the sampling rate
        if speech_processor is not None:
            make_processor(speech_processor)

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As [`~transformers.FeatureExtractionMixin.from_dict`], which would leave out those of the given parameters
        that a checkpoint of an older version does not name. What is meant for others passes, as in transformers.

        Raises:
            TypeError: a keyword looks like a mistyped parameter.
            ValueError: the settings are not a dictionary, or a parameter is of another type.
        """
        if not isinstance(feature_extractor_dict, dict):
            raise ValueError(
                "preprocessor_config.json does not hold the settings of a feature extractor, which are a JSON object."
            )
        given = {name: kwargs.pop(name) for name in parameters_of(cls) if name in kwargs}
        refuse_mistyped(kwargs, cls)
        return super().from_dict({**feature_extractor_dict, **given}, **kwargs)

    @property
    def cqt_parameters(self) -> tuple:
        """What shapes the CQT: its arguments of `spectrograms_maxmvit.cqt_magnitude`."""
        return self.sampling_rate, self.cqt_fmin, self.cqt_n_bins, self.cqt_bins_per_octave, self.cqt_hop_length

    @property
    def mel_parameters(self) -> tuple:
        """What shapes the Mel spectrogram: its arguments of `spectrograms_maxmvit.mel_power`."""
        return self.sampling_rate, self.mel_n_fft, self.mel_hop_length, self.n_mels

    @property
    def hops(self) -> dict[str, int | Fraction]:
        """Samples from one frame to the next of each of a clip's `spectrograms`."""
        hops: dict[str, int | Fraction] = {"cqt": self.cqt_hop_length}
        hops |= dict.fromkeys(("mel", "rms", "power"), self.mel_hop_length)
        if self.speech_processor is not None:
            hops[WAVEFORM] = Fraction(self.sampling_rate, make_processor(self.speech_processor).sampling_rate)
        return hops

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        device: str | torch.device = "cpu",
        **kwargs: Any,
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
            `BatchFeature` with `cqt_values` and `mel_values`, float32, each `(B, 3, height, width)`, and what `heard`
            returns.

        Raises:
            ValueError: another sampling rate, or an item that is empty, not one-dimensional, or holds NaN or infinity.
            TypeError: any other keyword.
        """
        refuse_unknown(kwargs, PADDING_KEYWORDS, type(self).__call__)
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
        clips = self.spectrograms(raw_speech, device=device)
        values: dict[str, Any] = {name: self.normalize(image, name.removesuffix("_values"))
                                  for name, image in self.images(clips).items()}  # fmt: skip
        values |= {name: value.to(device) for name, value in self.heard(clips).items()}
        if return_tensors != "pt":
            values = {name: value.cpu().numpy() for name, value in values.items()}
        return BatchFeature(values, tensor_type=return_tensors)

    def extract(self, waveforms: Any, device: str | torch.device = "cpu") -> BatchFeature:
        """`images` of `spectrograms`: what is given, returned and raised is written there."""
        return self.images(self.spectrograms(waveforms, device=device))

    @torch.no_grad()
    @one_thread()
    def spectrograms(self, waveforms: Any, device: str | torch.device = "cpu") -> list[dict[str, torch.Tensor]]:
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
              of 2,048 samples as `librosa.feature.rms` and `librosa.effects.trim` have it;
            - `power`, `(mel_n_fft // 2 + 1, 1 + T // mel_hop_length)`, of `filter_bank="learnable"`: what the Mel
              filters sum, floored at -160 dB;
            - `speech`, `(samples,)`: the waveform itself, no dB, at the rate of `speech_processor` where there is one.

        Raises:
            ValueError: an item is empty, not one-dimensional, or holds NaN or infinity; the message says which.
        """
        device = torch.device(device)
        waveforms = as_waveforms(waveforms, self.min_length)
        # Inside a training loop's autocast the filter bank would be multiplied in bfloat16.
        with torch.autocast(device.type, enabled=False):
            cqt, mel, learnable = self.cqt_parameters, self.mel_parameters, self.filter_bank == "learnable"
            clips = spectrograms_of(waveforms, cqt, mel, self.backend, device, learnable)
        if self.speech_processor is not None:
            for clip, waveform in zip(clips, waveforms, strict=True):
                clip[WAVEFORM] = resampled(waveform, self.sampling_rate, make_processor(self.speech_processor))
        return clips

    def stream(
        self, pieces: Iterable[np.ndarray], device: str | torch.device = "cpu", block_s: float = 16.0
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Spectrograms of a recording of any length, block by block, in the memory that a block takes. Joined along
        time, the blocks are `spectrograms` of the whole: the same frames, from the same samples around them (the CQT
        to 0.005 dB down to 60 dB below the maximum).

        Args:
            pieces (`Iterable[np.ndarray]`): consecutive stretches of the recording, of any lengths.
            device (`str`, defaults to `"cpu"`): as in `spectrograms`.
            block_s (`float`, defaults to 16.0): seconds per block; each costs what its seconds and 1.2 more cost.

        Raises:
            ValueError: the recording is empty, or holds NaN or infinity.
        """
        return stream_blocks(self, pieces, device, block_s)

    def cut(self, spectrogram: Mapping[str, torch.Tensor], start: float, end: float) -> dict[str, torch.Tensor]:
        """The stretch from `start` to `end`: views of as many frames as a waveform of this length has, from the one
        nearest to `start` on, where the clip goes that far; one frame at least.

        It is not what `spectrograms` has of a waveform cut there, whose first and last frames see zeros where these
        see what was said before and after: half a wavelet on each side, at C1 0.6 s. Further inside, and where `start`
        is a whole number of hops, the two differ by less than 0.005 dB down to 60 dB below the maximum (windows of 3
        and 10 s of RAVDESS speech). Over whole windows of 3 s, pixels differ by 0.0017 (CQT) and 0.0004 (Mel) on
        average; with frames up to half a hop beside those of the waveform, by 0.014 and 0.0025.

        Args:
            spectrogram: one clip, from `spectrograms`.
            start (`float`): in seconds.
            end (`float`): in seconds.

        Raises:
            ValueError: `end` is not after `start`, or `start` is not within the clip.
        """
        return stretch(spectrogram, start, end, self.sampling_rate, self.hops)

    def spoken(self, spectrogram: Mapping[str, torch.Tensor]) -> tuple[float, float]:
        """Start and end, in seconds, of what `images` shows of a clip: all but the silence that `trim_db` cuts."""
        rms = spectrogram["rms"]
        frames = (0, len(rms)) if self.trim_db is None else loud_frames(rms, self.trim_db)
        first, end = (frame * self.mel_hop_length / self.sampling_rate for frame in frames)
        return max(0.0, first - self.trim_margin), end + self.trim_margin

    def trim(self, spectrogram: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The stretch of a clip from `spoken`; the whole clip without `trim_db`."""
        return dict(spectrogram) if self.trim_db is None else self.cut(spectrogram, *self.spoken(spectrogram))

    @torch.no_grad()
    @one_thread()
    def images(
        self, spectrograms: Sequence[Mapping[str, torch.Tensor]], branches: Sequence[str] = ("cqt", "mel")
    ) -> BatchFeature:
        """Renders images of spectrograms in [0, 1], before normalisation: trimmed, levelled, represented, resized.

        Args:
            spectrograms: clips from `spectrograms` or `cut`, any float type, on any device; left as they are.
            branches (`Sequence[str]`, defaults to both): the images to render, of `"cqt"` and `"mel"`.

        Returns:
            `BatchFeature` with `cqt_values` and `mel_values`, float32 tensors `(B, 1, height, width)`, of three
            channels with `channels="deltas"`.

        Raises:
            ValueError: there is no clip.
        """
        if not len(spectrograms):
            raise ValueError("no spectrogram given: the list is empty")
        with torch.autocast(spectrograms[0]["mel"].device.type, enabled=False):
            clips = [self.trim({name: db.float() for name, db in clip.items()}) for clip in spectrograms]
            settings = picture_settings(self)
            images = {
                name: torch.cat([drawn(clip[name], settings, name == "mel") for clip in clips]) for name in branches
            }
        return BatchFeature({f"{name}_values": values for name, values in images.items()})

    @one_thread()
    def heard(self, spectrograms: Sequence[Mapping[str, torch.Tensor]]) -> BatchFeature:
        """What else the model is given of clips from `spectrograms` or `cut`, of the stretches that `images` shows:
        what a speech encoder hears, as `speech_maxmvit.speech_inputs` gives it, on the CPU, if there is a
        `speech_processor`; and `powers`."""
        heard = self.powers(spectrograms)
        if self.speech_processor is not None:
            waveforms = [self.trim(clip)[WAVEFORM] for clip in spectrograms]
            heard.update(speech_inputs(waveforms, make_processor(self.speech_processor)))
        return heard

    def powers(self, spectrograms: Sequence[Mapping[str, torch.Tensor]]) -> BatchFeature:
        """What learnable filters are fed with, as `learnable_maxmvit.power_inputs` gives it, of the same stretches;
        nothing with fixed ones."""
        learnable = self.filter_bank == "learnable"
        return BatchFeature(power_inputs([self.trim(clip)["power"] for clip in spectrograms]) if learnable else None)

    @property
    def image_shape(self) -> list[int]:
        """Height and width of `image_size`."""
        return [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size

    def normalization(self, branch: str) -> tuple[list[float], list[float]]:
        """`image_mean` and `image_std` of a branch, `"cqt"` or `"mel"`."""
        mean, std = (each[branch] if isinstance(each, dict) else each for each in (self.image_mean, self.image_std))
        return mean, std

    def normalize(self, images: torch.Tensor, branch: str = "cqt") -> torch.Tensor:
        """Normalises images of a branch, `(B, 1 or 3, H, W)` in [0, 1], any float type: `(B, 3, H, W)` float32."""
        return normalized(images, *self.normalization(branch))


def _by_branch(values: Sequence[float] | Mapping[str, Sequence[float]]) -> list[float] | dict[str, list[float]]:
    if isinstance(values, Mapping):
        return {branch: list(own) for branch, own in values.items()}
    return list(values)


MaxMViTFeatureExtractor.register_for_auto_class()

__all__ = ["MaxMViTFeatureExtractor"]
