"""The engine overrides and calls methods of transformers' Trainer that nobody has promised to keep. Where one of them
changes, this says so, and what to read again; `python -m tests.test_trainer_canary` prints the digests of the
installed version, once that has been done."""

import hashlib
import inspect
import re
import textwrap

import pytest
import transformers
from transformers import Trainer

from ser.resumable import ResumableTrainer
from ser.streaming import StreamingTrainer
from ser.trainer import SERTrainer

VERSION = "5.23.0"  # that the digests are of, and that requirements.txt pins

# method -> digest of its source in that version, and what of it the engine relies on
RELIED_ON: dict[str, tuple[str, str]] = {
    "train": ("0bc847a1e101", "it locks and settles the checkpoint first, and `True` stands for the newest one"),
    "_inner_training_loop": (
        "3b8b7359ad08",
        "the order: loaders, _init_training_state, _prepare_for_training, epochs, _finalize_training",
    ),
    "_init_training_state": (
        "4104b60f5233",
        "called once a training; it drops a best checkpoint that is not where the state says",
    ),
    "_prepare_for_training": (
        "7196fc64ea53",
        "weights of a checkpoint are loaded before it, optimizer and scheduler in it; it wraps the optimizer",
    ),
    "_run_epoch": (
        "20e0f3da0199",
        "clipping, _get_grad_norm, step, global_step + 1, _maybe_log_save_evaluate, once more at its end; on resuming "
        "it skips the first batches of the batch sampler",
    ),
    "_maybe_log_save_evaluate": ("7d857f309968", "everything that is logged, evaluated and saved goes through it"),
    "_finalize_training": (
        "ad949f4af42f",
        "it loads the best weights, and deletes checkpoints only if save_total_limit is 1",
    ),
    "training_step": ("caa7e68f3335", "it returns the loss of one small batch, detached"),
    "_prepare_inputs": ("b28ea48b3290", "training and evaluation move each batch to the device by it"),
    "compute_loss": ("30eb16e597ad", "without label_smoother and compute_loss_func it is the model's own loss"),
    "_clip_grad_norm": ("df0a0246dbcb", "its norm goes to _get_grad_norm"),
    "_get_grad_norm": (
        "27e2667f3741",
        "called at every update between backward and step, and its norm is that of all processes",
    ),
    "create_optimizer": ("72027ca5f62c", "called without a model but under FSDP1, and only for a side effect"),
    "get_train_dataloader": ("db950023cc90", "what it prepares by accelerate, for the override does the same"),
    "get_eval_dataloader": ("7eb9fa5663b4", "evaluate takes its loader from it"),
    "get_test_dataloader": ("600e812d9657", "predict takes its loader from it"),
    "_get_train_sampler": (
        "f3d15b81f2b0",
        "without grouping by length it is a RandomSampler that accelerate makes seedable",
    ),
    "_get_eval_sampler": ("e3c9847a0000", "one process reads in order, and several by no sampler of their own"),
    "_remove_unused_columns": ("0e09f6fa84f9", "it returns the data set without them"),
    "_get_collator_with_removed_columns": ("df0633f183e6", "it returns the collator, wrapped or not"),
    "evaluation_loop": (
        "0e78695b50b6",
        "evaluate and predict go through it; its loss is a mean over padded batches, and its predictions are gathered",
    ),
    "_save_checkpoint": (
        "4638fc7aeef9",
        "the parts that it calls, for the override calls the same and neither pushes nor rotates",
    ),
    "_save_optimizer_and_scheduler": ("bc4e124e0996", "the folder is its first argument, and it writes into it"),
    "_save_scaler": ("a7e078f7afec", "the folder is its argument"),
    "_save_rng_state": ("87f4e3c83b0f", "each process writes a file rng_state_N.pth of its own"),
    "_save": ("d7432eef4d5f", "what else it writes beside model, processor and the pickled arguments"),
    "save_model": ("482f6c2c688c", "everything is saved through _save"),
    "_load_from_checkpoint": ("1fa7425d1ea7", "weights come from model.safetensors, and nothing is unpickled"),
    "_load_best_model": ("27a2385b6ad1", "weights come from model.safetensors, and nothing is unpickled"),
    "_load_optimizer_and_scheduler": ("d8b86ea0410f", "nothing is unpickled: weights_only=True"),
    "_load_rng_state": ("5d66257d34a3", "nothing is unpickled: weights_only=True"),
    "_load_scaler": ("66f98be0205e", "nothing is unpickled: weights_only=True"),
    "_load_callback_state": ("5f5e2dede16b", "callbacks are replaced by new ones, made of what state() returned"),
    "_get_output_dir": ("a0570e0382da", "the folder of checkpoints"),
    "_determine_best_metric": ("a895fcc6f2d1", "it sets best_global_step before the checkpoint of that step is saved"),
    "push_to_hub": ("35ab3316b4f2", "save_model(_internal_call=False) calls it; the override pushes fewer files"),
    "init_hf_repo": ("f82787ce9b9c", "it sets hub_model_id"),
    "log": ("24a8b511d38d", "it appends to log_history, and is given the learning rate once an update"),
    "floating_point_ops": ("40091c767aed", "called at every step"),
    "store_flos": ("69b97771644e", "called before a checkpoint's state is written"),
}


def digest(name: str) -> str:
    source = textwrap.dedent(inspect.getsource(getattr(Trainer, name)))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def overridden() -> dict[str, object]:
    """What the engine's classes define over Trainer's own."""
    own = vars(ResumableTrainer) | vars(SERTrainer) | vars(StreamingTrainer)
    return {name: each for name, each in own.items() if inspect.isfunction(each) and hasattr(Trainer, name)}


@pytest.mark.parametrize("name", RELIED_ON)
def test_trainers_method_is_the_one_that_was_read(name):
    expected, reliance = RELIED_ON[name]
    assert digest(name) == expected, (
        f"Trainer.{name} of transformers {transformers.__version__} is not that of {VERSION}. Read it again, and "
        f"SERTrainer and ResumableTrainer, which rely on this: {reliance}. Then put its new digest here."
    )


def test_every_method_that_is_overridden_or_private_is_watched():
    used = {
        name
        for each in (ResumableTrainer, SERTrainer, StreamingTrainer)
        for name in re.findall(r"self\.(_\w+)\(", inspect.getsource(each))
    }
    private = {name for name in used if hasattr(Trainer, name)}
    assert (set(overridden()) | private) - {"__init__"} <= set(RELIED_ON), "say above what these rely on"


@pytest.mark.parametrize("name", sorted(set(overridden()) - {"__init__", "push_to_hub"}))
def test_what_is_overridden_can_be_called_as_before(name):
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
