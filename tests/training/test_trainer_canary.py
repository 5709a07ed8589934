"""The engine overrides and calls methods of transformers' Trainer that are private and may change in any release.
`ser/training/checkpoints.py` contains digests of their tested sources and what the engine relies on; these tests fail
if the installed version differs. `python -m tests.training.test_trainer_canary` prints the digests of the installed
version; add them there after reading the changed methods."""

import inspect
import re

import pytest
import transformers
from packaging.version import Version
from transformers import Trainer

from ser.training import checkpoints
from ser.training.checkpoints import RELIED_ON, TESTED, ResumableTrainer, changed_methods, digest
from ser.training.streaming import StreamingTrainer
from ser.training.trainer import SERTrainer
from tests.helpers.training import make_trainer


def overridden() -> dict[str, object]:
    """Returns the methods of Trainer that the classes of the engine override."""
    own = vars(ResumableTrainer) | vars(SERTrainer) | vars(StreamingTrainer)
    return {name: each for name, each in own.items() if inspect.isfunction(each) and hasattr(Trainer, name)}


@pytest.mark.parametrize("name", RELIED_ON)
def test_the_method_of_trainer_is_a_tested_one(name):
    digests, reliance = RELIED_ON[name]
    assert digest(name) in digests.split(), (
        f"Trainer.{name} of transformers {transformers.__version__} is not that of {' or '.join(TESTED)}. Read it "
        f"again, and SERTrainer and ResumableTrainer, which rely on this: {reliance}. Then add its digest."
    )


def test_the_installed_version_is_among_the_tested_ones():
    assert transformers.__version__ in TESTED and list(TESTED) == sorted(TESTED, key=Version)


@pytest.fixture
def warnings(monkeypatch):
    warnings = []
    monkeypatch.setattr(checkpoints.logger, "warning_once", warnings.append)
    return warnings


def test_a_tested_version_of_trainer_causes_no_warning(tmp_path, warnings):
    make_trainer(tmp_path)
    assert changed_methods() == [] and warnings == []


@pytest.mark.parametrize(
    "names", [("_get_grad_norm",), ("floating_point_ops", "_save_scaler"), ("store_flos", "_clip_grad_norm", "log")]
)
def test_changed_methods_of_trainer_are_named_in_one_warning(tmp_path, monkeypatch, warnings, names):
    for name in names:
        original = getattr(Trainer, name)
        monkeypatch.setattr(Trainer, name, lambda *args, original=original, **kwargs: original(*args, **kwargs))
    make_trainer(tmp_path)
    (warning,) = warnings
    assert set(names) == set(re.findall(r"\w+", warning.partition(" in ")[2].partition(". ")[0]))
    assert transformers.__version__ in warning and f"transformers=={TESTED[-1]}" in warning


def test_a_removed_method_counts_as_changed(monkeypatch):
    monkeypatch.delattr(Trainer, "_get_output_dir")
    monkeypatch.delattr(Trainer, "store_flos")
    assert set(changed_methods()) == {"_get_output_dir", "store_flos"}


def test_every_overridden_or_private_method_has_a_digest():
    used = {
        name
        for each in (ResumableTrainer, SERTrainer, StreamingTrainer)
        for name in re.findall(r"self\.(_\w+)\(", inspect.getsource(each))
    }
    private = {name for name in used if hasattr(Trainer, name)}
    assert (set(overridden()) | private) - {"__init__"} <= set(RELIED_ON), (
        "add what is relied on to ser/training/checkpoints.py"
    )


@pytest.mark.parametrize("name", sorted(set(overridden()) - {"__init__", "push_to_hub"}))
def test_overriding_methods_accept_the_same_arguments(name):
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(overridden()[name]).parameters
    kinds = {parameter.kind for parameter in ours.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        named = [name for name, p in ours.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        assert set(named) <= set(theirs)
    elif inspect.Parameter.VAR_POSITIONAL not in kinds:
        assert list(ours) == list(theirs)


if __name__ == "__main__":
    for method in sorted({*RELIED_ON, *overridden()} - {"__init__"}):
        print(f'    "{method}": ("{digest(method)}", "{RELIED_ON.get(method, ("", "?"))[1]}"),')
