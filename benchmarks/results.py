"""Writes the results of a benchmark as JSON (`--json FILE`)."""

import argparse
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ser.files import versions, write_json


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to which the figures are written, too")


def take_json(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Returns the value of `--json` and the other options, which a benchmark passes on to the training command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_json(parser)
    args, others = parser.parse_known_args(arguments)
    return args.json, others


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
