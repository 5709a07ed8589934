"""What a benchmark prints for its reader, as a file for programs: `--json FILE`."""

import argparse
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ser.files import versions, write_json


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there too")


def take_json(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """`--json` out of the flags of a benchmark that hands the others on, and those others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_json(parser)
    args, others = parser.parse_known_args(arguments)
    return args.json, others


def write_results(path: Path | None, figures: Mapping[str, object]) -> None:
    """
    Keeps what was measured, the command, and the machine and versions that it was measured with.

    Args:
        path (`Path`, *optional*): What `--json` named; without it nothing is written.
        figures: Name (with its unit at the end: `_s`, `_ms`, `_mib`) -> number, or a table of such.
    """
    if path is None:
        return
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    write_json(path, {"command": command, "machine": machine, "versions": versions(), "figures": figures})
