"""What the flags would do to clips that the model cannot see or hear so: refused before any clip is read."""

from configuration_maxmvit import MaxMViTConfig
from ser.arguments import SERTrainingArguments
from ser.data_arguments import DataArguments
from ser.errors import DataError
from ser.frozen import suffices
from ser.unheard import given_flags, refuse_flags_of


def refuse_misfits(config: MaxMViTConfig, data_args: DataArguments, args: SERTrainingArguments) -> None:
    """
    Raises:
        DataError: flags and model do not fit; says which to leave out.
        ValueError: a flag is about a part that the model has not.
    """
    learns_filters, hears = config.filter_bank == "learnable", "speech" in config.branch_names
    if not learns_filters:
        refuse_flags_of("filter", given_flags(args))
    if not hears:
        refuse_flags_of("speech", given_flags(args))
    if args.mixup_alpha and hears:
        raise DataError("--mixup_alpha blends pictures and no waveforms: leave it out, or --speech_encoder.")
    if args.mixup_alpha and learns_filters:
        raise DataError(
            "--mixup_alpha blends pictures, and learnable filters draw theirs after it: leave it out, or "
            "--filter_bank learnable."
        )
    if args.specaugment_masks and learns_filters and "cqt" not in config.branch_names:
        raise DataError(
            "--specaugment_masks masks pictures, and learnable filters draw theirs after it, which are all that this "
            "model sees: leave it out, or --filter_bank learnable."
        )
    if args.train_sampling_strategy == "group_by_length":
        hears_each_time = hears and not (data_args.cache_features and suffices(config, args))
        if not learns_filters and not hears_each_time:
            raise DataError(
                "--train_sampling_strategy group_by_length spares what is filled up to the longest of a batch, and "
                "pictures all have one size: leave it out, or train a --speech_encoder or a --filter_bank learnable."
            )
        if not data_args.cache_features:
            raise DataError(
                "--train_sampling_strategy group_by_length needs --cache_features: only then is it known beforehand "
                "how long clips are."
            )
