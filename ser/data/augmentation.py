"""Augmentation in training: random windows, gain and stretch of spectrograms; SpecAugment and mixup of images.

A spectrogram augmentation is a callable `clip -> clip` on the spectrograms of one clip, in dB, before images are
rendered from them. An augmentation is a callable `(images, labels) -> (images, labels)` on a batch of images before
they are normalised, `{branch: (batch_size, channels, height, width)}` in [0, 1], with frequency along the height and
time along the width. Random numbers come from torch's global generator, and inputs are not changed in place.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import one_hot

from feature_extraction_maxmvit import WAVEFORM
from ser.arguments import AugmentationArguments, ClipAugmentationArguments

Clip = dict[str, torch.Tensor]
SpectrogramAugmentation = Callable[[Clip], Clip]
Images = dict[str, torch.Tensor]
Augmentation = Callable[[Images, torch.Tensor], tuple[Images, torch.Tensor]]


class RandomWindow:
    """
    Replaces a clip by a random window of it. The pipeline classifies long recordings by windows, on which a model
    trained only on whole clips performs poorly; and there are many more windows than clips.

    With `trim_db`, the clip is trimmed first, so that windows lie within its speech. The window is then rendered (and
    trimmed) like a clip, as the pipeline does with its windows.

    Since all images have the same width, a window of another length is a change of tempo: in a window that is longer
    by a factor, speech is faster by that factor. Random time stretching (Salamon & Bello 2017,
    https://arxiv.org/abs/1608.04363, who use a phase vocoder) therefore costs nothing here, and preserves the pitch.

    Args:
        feature_extractor (`MaxMViTFeatureExtractor`): For `trim` and `cut`.
        seconds (`float`): Length of a window. Shorter clips stay whole.
        whole_share (`float`, defaults to 0.0): Share of longer clips that stay whole.
        stretch (`float`, defaults to 0.0): The window is longer or shorter by a factor of up to 1 + `stretch`,
            uniform in its logarithm.
    """

    def __init__(self, feature_extractor: Any, seconds: float, whole_share: float = 0.0, stretch: float = 0.0):
        if not seconds > 0:
            raise ValueError(f"seconds={seconds} must be above 0, such as 2.")
        if not 0 <= whole_share <= 1:
            raise ValueError(f"whole_share={whole_share} must be a number from 0 to 1.")
        if not stretch >= 0:
            raise ValueError(f"stretch={stretch} must not be negative; 0.1 means up to a tenth faster or slower.")
        self.feature_extractor = feature_extractor
        self.seconds = seconds
        self.whole_share = whole_share
        self.stretch = stretch

    def __call__(self, clip: Clip) -> Clip:
        # Always three draws, so that the windows of other clips in the batch do not depend on this clip's length.
        whole, place, tempo = torch.rand(3).tolist()
        length = self.seconds * math.exp((2 * tempo - 1) * math.log1p(self.stretch))
        speech = self.feature_extractor.trim(clip)
        spare = seconds_of(speech, self.feature_extractor) - length
        if spare <= 0 or whole < self.whole_share:
            return clip
        return self.feature_extractor.cut(speech, place * spare, place * spare + length)


class RandomGain:
    """
    Makes a clip louder or softer by up to `db` dB, like a change of the distance from the microphone. It has an effect
    only if the extractor's `level` preserves loudness in the image.
    """

    def __init__(self, db: float):
        if not db > 0:
            raise ValueError(f"gain_db={db} must be above 0; for no gain, leave it out.")
        self.db = db

    def __call__(self, clip: Clip) -> Clip:
        gain = (2 * torch.rand(()) - 1) * self.db
        louder = {name: decibels + gain for name, decibels in clip.items() if name != WAVEFORM}
        if WAVEFORM in clip:
            louder[WAVEFORM] = clip[WAVEFORM] * 10 ** (gain / 20)
        return louder


def seconds_of(clip: Clip, feature_extractor: Any) -> float:
    """Returns the length of a clip in seconds, to the precision of its Mel frames."""
    return (clip["mel"].shape[-1] - 1) * feature_extractor.mel_hop_length / feature_extractor.sampling_rate


def random_masks(batch_size: int, length: int, num_masks: int, max_share: float) -> torch.Tensor:
    """
    Returns random masks along one axis, independent for every clip: `(batch_size, length)`, True where masked.

    Each of `num_masks` masks is as wide as a uniform draw from 0 to `max_share` of the axis, and lies anywhere on it
    (SpecAugment, Park et al. 2019, https://arxiv.org/abs/1904.08779, section 2).
    """
    width = torch.rand(batch_size, num_masks, 1) * max_share * length
    start = torch.rand(batch_size, num_masks, 1) * (length - width)
    places = torch.arange(length) + 0.5
    return ((places >= start) & (places < start + width)).any(dim=1)


class SpecAugment:
    """
    Masks bands of frequency and spans of time. A span of time is masked in all images of a clip, so that no branch
    contains it; bands of frequency differ between the images, like their frequency axes.

    Args:
        num_masks (`int`, defaults to 2): Masks per clip and axis.
        time_share (`float`, defaults to 0.1): The widest span of time, as a share of the clip.
        frequency_share (`float`, defaults to 0.15): The widest band, as a share of the frequency axis.

    Masked places become 0, the lower end of the decibel range. Labels are unchanged.
    """

    def __init__(self, num_masks: int = 2, time_share: float = 0.1, frequency_share: float = 0.15):
        for name, share in (("time_share", time_share), ("frequency_share", frequency_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be a number from 0 to 1.")
        if num_masks < 0:
            raise ValueError(f"num_masks={num_masks} must not be negative.")
        self.num_masks = num_masks
        self.time_share = time_share
        self.frequency_share = frequency_share

    def __call__(self, images: Images, labels: torch.Tensor) -> tuple[Images, torch.Tensor]:
        widths = {branch: values.shape[-1] for branch, values in images.items()}
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{branch} {width}" for branch, width in widths.items())
            raise ValueError(f"The images of a clip share its time axis and must be equally wide: {found}.")
        batch_size, width = len(labels), next(iter(widths.values()))
        time = random_masks(batch_size, width, self.num_masks, self.time_share)[:, None, None, :]
        masked = {}
        for branch, values in images.items():
            bands = random_masks(batch_size, values.shape[-2], self.num_masks, self.frequency_share)
            masked[branch] = values.masked_fill(time | bands[:, None, :, None], 0.0)
        return masked, labels


class Mixup:
    """
    Blends the images and labels of every clip with those of another clip of the batch, by one share per clip drawn
    from Beta(`alpha`, `alpha`) (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

    Args:
        alpha (`float`): Shape of the distribution, above 0; 0.2 blends little, 1.0 uniformly.
        num_labels (`int`): Number of classes.

    Labels `(batch_size,)` of class indices, or float probabilities `(batch_size, num_labels)`, come back as such
    probabilities, float32.
    """

    def __init__(self, alpha: float, num_labels: int):
        if alpha <= 0:
            raise ValueError(f"alpha={alpha} must be above 0; to train without mixup, leave it out.")
        self.num_labels = num_labels
        self.shares = torch.distributions.Beta(float(alpha), float(alpha))

    def __call__(self, images: Images, labels: torch.Tensor) -> tuple[Images, torch.Tensor]:
        share = self.shares.sample((len(labels),))
        partner = torch.randperm(len(labels))

        def blend(values: torch.Tensor) -> torch.Tensor:
            own = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
            return own * values + (1 - own) * values[partner]

        blended = {branch: blend(values) for branch, values in images.items()}
        shares = labels if labels.is_floating_point() else one_hot(labels, self.num_labels)
        return blended, blend(shares.float())


class Compose:
    """Applies augmentations one after the other; they must all be for clips, or all for batches."""

    def __init__(self, *augmentations: Callable):
        self.augmentations = augmentations

    def __call__(self, *batch: Any) -> Any:
        for augmentation in self.augmentations:
            changed = augmentation(*batch)
            batch = changed if isinstance(changed, tuple) else (changed,)
        return changed


def make_augmentation(args: AugmentationArguments, num_labels: int) -> Augmentation | None:
    """Returns the augmentation of batches that these options choose, or None without any."""
    chosen: list[Augmentation] = []
    if args.specaugment_masks:
        chosen.append(SpecAugment(args.specaugment_masks, args.specaugment_time, args.specaugment_frequency))
    if args.mixup_alpha:
        chosen.append(Mixup(args.mixup_alpha, num_labels))
    return Compose(*chosen) if chosen else None


def make_spectrogram_augmentation(
    args: ClipAugmentationArguments, feature_extractor: Any
) -> SpectrogramAugmentation | None:
    """
    Returns the augmentation of clips that these options choose, or None without any.

    Raises:
        ValueError: an option has no effect.
    """
    chosen: list[SpectrogramAugmentation] = []
    if args.training_window is not None:
        chosen.append(RandomWindow(feature_extractor, args.training_window, args.whole_clip_share, args.time_stretch))
    if args.gain_db:
        if feature_extractor.level == "clip":
            raise ValueError(
                f"--gain_db {args.gain_db:g} has no effect on images in which 0 dB is the clip's own maximum: add "
                '--feature_extractor_kwargs \'{"level": "full_scale"}\', or leave it out.'
            )
        chosen.append(RandomGain(args.gain_db))
    return Compose(*chosen) if chosen else None
