"""Helpers of the benchmarks: their options, results as JSON (`--json FILE`), and the speakers of a checkpoint."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ser.files import versions, write_json


def parser_of(doc: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """Returns the parser of a benchmark with several measurements, and the subparsers for [`add_command`]."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser, parser.add_subparsers(dest="measured", required=True)


def add_command(
    commands: Any,
    name: str,
    measure: Callable[[argparse.Namespace], Mapping[str, object]],
    doc: str,
    takes_flags: bool = False,
) -> argparse.ArgumentParser:
    """
    Adds one measurement to a benchmark, with `--json`.

    Args:
        measure: Function of the arguments that prints the figures and returns them.
        doc: Description; its first line is the help in the list of all measurements.
        takes_flags: Whether options that the parser does not know are for run_ser.py (in `args.flags`), instead of
            errors.
    """
    parser = commands.add_parser(
        name, help=doc.splitlines()[0].replace("%", "%%"), description=doc, allow_abbrev=not takes_flags,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(measure=measure, takes_flags=takes_flags)
    add_json(parser)
    return parser


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> None:
    """Runs the measurement that the arguments (default: those of the command line) name, and writes its figures."""
    args, flags = parser.parse_known_args(arguments)
    if flags and not args.takes_flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    args.flags = flags
    write_results(args.json, args.measure(args))


def add_ravdess(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of RAVDESS, `data_dir`; without it and without SER_RAVDESS_DIR, parsing ends with an error."""

    def named(folder: str) -> str:
        if not folder:
            raise argparse.ArgumentTypeError("name the folder of RAVDESS, or set SER_RAVDESS_DIR")
        return folder

    default = os.environ.get("SER_RAVDESS_DIR", "")
    parser.add_argument("data_dir", nargs="?", type=named, default=default, help="RAVDESS (default: SER_RAVDESS_DIR)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to which the figures are also written")


def write_results(path: Path | None, figures: Mapping[str, object]) -> None:
    """
    Writes the figures with the command, the machine and the versions of packages.

    Args:
        path (`Path`, *optional*): Value of `--json`; without it nothing is written.
        figures: Name (with its unit at the end: `_s`, `_ms`, `_mib`) -> number, or a table of these.
    """
    if path is None:
        return
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    write_json(path, {"command": command, "machine": machine, "versions": versions(), "figures": figures})


def speakers_of(checkpoint: Path, part: str = "test") -> list[str]:
    """
    Returns the speakers of one part ("train", "validation" or "test") of a checkpoint's corpus. If the checkpoint has
    no splits.json, or the part is empty, the command ends with an error.
    """
    try:
        clips = json.loads((checkpoint / "splits.json").read_text(encoding="utf-8"))["clips"]
    except FileNotFoundError:
        sys.exit(f"error: {checkpoint} has no splits.json with its test speakers; name them by --actors.")
    speakers = {clip["speaker"] for clip in clips if clip["part"] == part}
    if not speakers:
        sys.exit(
            f"error: the {part} part of {checkpoint} is empty: use a checkpoint that has one, or name speakers that "
            "it was not trained on by --actors, if the benchmark has that option."
        )
    return sorted(speakers)
