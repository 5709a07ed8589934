"""What training adds to a batch of images: SpecAugment's masks and mixup.

An augmentation is a callable `(images, labels) -> (images, labels)` on a batch of pictures before they
are normalised, `{branch: (batch_size, channels, height, width)}` in [0, 1]; height is frequency, width is time. The
randomness is torch's global generator, and the inputs are left as they were.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import one_hot

Images = dict[str, torch.Tensor]
Augmentation = Callable[[Images, torch.Tensor], tuple[Images, torch.Tensor]]


def random_masks(batch_size: int, length: int, num_masks: int, max_share: float) -> torch.Tensor:
    """
    Places to mask along one axis, independently for every clip: `(batch_size, length)`, True where masked.

    Each of `num_masks` masks is as wide as a uniform draw from 0 to `max_share` of the axis, and lies anywhere on it
    (SpecAugment, Park et al. 2019, https://arxiv.org/abs/1904.08779, section 2).
    """
    width = torch.rand(batch_size, num_masks, 1) * max_share * length
    start = torch.rand(batch_size, num_masks, 1) * (length - width)
    places = torch.arange(length) + 0.5
    return ((places >= start) & (places < start + width)).any(dim=1)


class SpecAugment:
    """
    Masks bands of frequency and spans of time. A span of time is hidden from all images of a clip, so that no branch
    can look it up in another's; bands of frequency differ, since the axes do.

    Args:
        num_masks (`int`, defaults to 2): Masks per clip and axis.
        time_share (`float`, defaults to 0.1): The widest span of time, as a share of the clip.
        frequency_share (`float`, defaults to 0.15): The widest band, as a share of the frequency axis.

    Masked places become 0, the floor of the decibel range. Labels pass unchanged.
    """

    def __init__(self, num_masks: int = 2, time_share: float = 0.1, frequency_share: float = 0.15):
        for name, share in (("time_share", time_share), ("frequency_share", frequency_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is not a share: give a number from 0 to 1.")
        if num_masks < 0:
            raise ValueError(f"num_masks={num_masks} must not be negative.")
        self.num_masks = num_masks
        self.time_share = time_share
        self.frequency_share = frequency_share

    def __call__(self, images: Images, labels: torch.Tensor) -> tuple[Images, torch.Tensor]:
        widths = {branch: values.shape[-1] for branch, values in images.items()}
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{branch} {width}" for branch, width in widths.items())
            raise ValueError(f"Images of one clip share one time axis, but are not equally wide: {found}.")
        batch_size, width = len(labels), next(iter(widths.values()))
        time = random_masks(batch_size, width, self.num_masks, self.time_share)[:, None, None, :]
        masked = {}
        for branch, values in images.items():
            bands = random_masks(batch_size, values.shape[-2], self.num_masks, self.frequency_share)
            masked[branch] = values.masked_fill(time | bands[:, None, :, None], 0.0)
        return masked, labels


class Mixup:
    """
    Blends every clip with another of its batch, images and labels alike, by one share per clip drawn from
    Beta(`alpha`, `alpha`) (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

    Args:
        alpha (`float`): Shape of the distribution, above 0; 0.2 blends little, 1.0 uniformly.
        num_labels (`int`): Number of classes.

    Labels `(batch_size,)` of class indices come back as probabilities `(batch_size, num_labels)`, float32.
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
        return blended, blend(one_hot(labels, self.num_labels).float())


class Compose:
    """One augmentation after the other."""

    def __init__(self, *augmentations: Augmentation):
        self.augmentations = augmentations

    def __call__(self, images: Images, labels: torch.Tensor) -> tuple[Images, torch.Tensor]:
        for augmentation in self.augmentations:
            images, labels = augmentation(images, labels)
        return images, labels


def make_augmentation(
    num_labels: int,
    *,
    specaugment_masks: int = 0,
    specaugment_time: float = 0.1,
    specaugment_frequency: float = 0.15,
    mixup_alpha: float = 0.0,
) -> Augmentation | None:
    """The augmentation that these settings ask for; None if they ask for none (no masks and a
    `mixup_alpha` of 0)."""
    chosen: list[Augmentation] = []
    if specaugment_masks:
        chosen.append(SpecAugment(specaugment_masks, specaugment_time, specaugment_frequency))
    if mixup_alpha:
        chosen.append(Mixup(mixup_alpha, num_labels))
    return Compose(*chosen) if chosen else None
