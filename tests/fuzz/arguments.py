"""Fuzz cases: damaged recipes and flags of the training command."""

import contextlib
import dataclasses
import io
import random
from pathlib import Path

from accelerate.state import AcceleratorState

from ser.arguments import DataArguments, ModelArguments
from ser.cli import handle_help, parse_arguments
from ser.training.arguments import SERTrainingArguments
from ser.utils import exit_code
from tests.fuzz.kinds import Case
from tests.fuzz.mutations import broken

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
# Options that start processes or access the network.
LEFT_OUT = {"ddp_backend", "local_rank", "deepspeed", "fsdp", "fsdp_config", "push_to_hub", "hub_token", "use_cpu"}
FLAGS = sorted(
    {
        field.name
        for kind in (ModelArguments, DataArguments, SERTrainingArguments)
        for field in dataclasses.fields(kind)
    }
    - LEFT_OUT
)
VALUES = (
    "", "0", "1", "-1", "1e-3", "nan", "inf", "1e999", "9" * 5_000,
    "true", "no", "None", "null", "epoch", "steps", "adam",
    "{}", "[]", "{",
    '{"a": 1}', '{"image_size": "x"}', "\0", "\u00fc", "../..", "/dev/null", "x" * 10_000,
    "--seed", "-", "--",
)  # fmt: skip
ODD_LINES = (
    "seed: [1, 2]", "seed: {a: 1}", "1: 2", "null: 1", "? [a]\n: 1", "seed: 2020-01-01",
    "seed: !!python/object/apply:os.getcwd []",
    "seed: !!binary aGk=", "seed: .nan", "seed: 0x10", "seed: 1_000", "labels: [a, [b]]", "true: false",
    "seed: !!set {a, b}",
    "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(8)
    ),
    "seed: " + "[" * 3_000, "seed: &s {a: *s}",
    "<<: {seed: 1}", "seed: |\n  many\n  lines",
    "--seed: 1", "help: ", "seed 1", "\t- x",
    "---\na: 1\n---\nb: 2", "%YAML 9.9\n---\nseed: 1", "recipe.yaml: 1", "output_dir: ~", "'': 1", "seed: ''",
)  # fmt: skip


def make(rng: random.Random) -> Case:
    files, flags = {}, []
    if rng.random() < 0.7:
        text = rng.choice(RECIPES).read_bytes()
        if rng.random() < 0.5:
            text += b"\n" + rng.choice(ODD_LINES).encode() + b"\n"
        if rng.random() < 0.5:
            text = broken(text, rng)
        files["recipe.yaml"] = text
        flags.append("recipe.yaml")
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        name = rng.choice(FLAGS)
        if rng.random() < 0.1:
            name = name[: rng.randrange(len(name))] + rng.choice("xyz_-= ")
        flags += [f"--{name}", *(rng.choice(VALUES) for _ in range(rng.choice((0, 1, 1, 1, 2))))]
    if rng.random() < 0.2:
        rng.shuffle(flags)
    return Case("arguments", files, {"flags": flags})


def _parse(flags: list[str]) -> None:
    handle_help(flags, "")
    parse_arguments(flags)


def run(case: Case, folder: Path) -> str:
    """Parses the flags as the command does. An error must print a message and set an exit code."""
    output = io.StringIO()
    AcceleratorState._reset_state(reset_partial_state=True)
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            code = exit_code(lambda: _parse(case.options["flags"]), "", "--log_level debug")
        except SystemExit as stopped:
            code = stopped.code
    if code == 0:
        return "accepted"
    message = output.getvalue() if isinstance(code, int) else str(code)
    assert "error: " in message and "Traceback" not in message, (
        f"exit code {code} without an error message: {message[-300:]!r}"
    )
    return "refused"
