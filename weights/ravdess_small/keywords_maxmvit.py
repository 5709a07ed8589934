"""Keywords that nothing would heed: refused, with the name that was meant."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence

# What transformers saves with every feature extractor, and what it passes to one that is called.
SAVED_KEYWORDS = (
    "feature_size", "padding_value", "padding_side", "return_attention_mask", "feature_extractor_type",
    "processor_class", "auto_map", "custom_pipelines", "transformers_version",
)  # fmt: skip
PADDING_KEYWORDS = ("padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask")


def parameters_of(function: Callable) -> list[str]:
    """Names of the parameters of a function or class, without what collects the rest."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]


def refuse_unknown(given: Iterable[str], known: Sequence[str], function: Callable) -> None:
    """Raises `TypeError` for the first name that is not among the known ones."""
    for name in given:
        if name not in known:
            parameters = parameters_of(function)
            close = difflib.get_close_matches(name, parameters, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(parameters)}"
            raise TypeError(f"{function.__qualname__} has no parameter {name!r}; {hint}")


def refuse_mistyped(given: Iterable[str], function: Callable) -> None:
    """Raises `TypeError` for a name that looks like a mistyped parameter; others may be meant for somebody else."""
    for name in given:
        if close := difflib.get_close_matches(name, parameters_of(function), n=1, cutoff=0.8):
            raise TypeError(f"{function.__qualname__} has no parameter {name!r}; did you mean {close[0]!r}?")
