"""Trains on each of several corpora and tests on all of them: a matrix of UA with a row per training corpus.

    python -m benchmarks.cross_corpus configs/ravdess_small.yaml --dataset_name ravdess emodb cremad \\
        --data_dir RAVDESS EMO-DB CREMA-D --output_dir out/cross_corpus

Other options are passed to every run of the training command. On each corpus one model is trained by its own protocol
(fold 1), whose test part is the diagonal; the other corpora are tested as a whole. Every cell is scored on the classes
that both corpora have under --label_map, so cells of a row may differ in classes, and the chance level is printed in
each. An interrupted command resumes. The command writes table.md, table.csv and matrix.png.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.results import add_json, write_results
from ser.data.corpora.combine import NO_FOLDER
from ser.data.corpora.loading import find_corpus
from ser.evaluation.evaluate import evaluate, parse_arguments
from ser.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--dataset_name", nargs="+", required=True)
    parser.add_argument("--data_dir", nargs="+", help="a folder for each, or none")
    parser.add_argument("--label_map", default="default", help="YAML file of classes and their spellings")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--cache_dir", help="where features are kept")
    parser.add_argument("--output_dir", type=Path, default=Path("out/cross_corpus"))
    add_json(parser)
    args, flags = parser.parse_known_args(arguments)
    folders = args.data_dir or [NO_FOLDER] * len(args.dataset_name)
    if len(folders) != len(args.dataset_name):
        sys.exit(f"error: --data_dir names {len(folders)} folder(s) for {len(args.dataset_name)} corpora.")
    places = {
        find_corpus(name, None if folder == NO_FOLDER else folder)[2]: source(name, folder, args.cache_dir)
        for name, folder in zip(args.dataset_name, folders, strict=True)
    }
    cells = []
    for trained, place in places.items():
        model = args.output_dir / trained / "model"
        train(args.recipe, [*flags, *place, "--seed", str(args.seed)], model)
        for tested, where in places.items():
            part = part_of(model) if tested == trained else []
            report = score(model, [*where, *part], args, args.output_dir / trained / f"on_{tested}")
            cells.append(cell(trained, tested, report))
    write(args.output_dir, list(places), cells)
    write_results(args.json, {"cells": cells})


def source(name: str, folder: str, cache_dir: str | None) -> list[str]:
    """Returns the options of one corpus."""
    place = [] if folder == NO_FOLDER else ["--data_dir", folder]
    return ["--dataset_name", name, *place, *(["--cache_dir", cache_dir] if cache_dir else [])]


def train(recipe: Path, flags: Sequence[str], output_dir: Path) -> None:
    """Trains a model, unless the run is finished."""
    if (output_dir / "metrics.json").exists():
        return
    print(f"# {output_dir}", flush=True)
    command = [sys.executable, str(ROOT / "run_ser.py"), str(recipe), *flags, "--output_dir", str(output_dir)]
    done = subprocess.run([*command, "--disable_tqdm", "true"], check=False)
    if done.returncode:
        sys.exit(f"error: {output_dir} ended with exit code {done.returncode}; the same command resumes it.")


def part_of(model: Path) -> list[str]:
    """Returns the options for the test part of a run's own corpus."""
    protocol = json.loads((model / "metrics.json").read_text(encoding="utf-8"))["protocol"].partition("/")[2]
    named = re.fullmatch(r"(?P<name>.+?)(-fold(?P<fold>\d+))?", protocol)
    assert named is not None  # anything is a name
    return ["--protocol", named["name"], "--fold", named["fold"] or "1"]


def score(model: Path, flags: Sequence[str], args: argparse.Namespace, output_dir: Path) -> dict[str, Any]:
    """Returns the report of `evaluate_ser.py` for a model on a corpus; an existing report is reused."""
    if (output_dir / "metrics.json").exists():
        return json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))
    more = ["--label_map", args.label_map, "--seed", str(args.seed), "--output_dir", str(output_dir)]
    return evaluate(*parse_arguments([str(model), *flags, *more], __doc__ or ""))


def cell(trained: str, tested: str, report: Mapping[str, Any]) -> dict[str, Any]:
    low, high = report["intervals"]["by_clip"]["UA"]
    return {
        "trained_on": trained, "tested_on": tested, "protocol": report["protocol"], "UA": report["UA"],
        "UA_low": low, "UA_high": high, "WA": report["WA"], "clips": report["n_clips"],
        "classes": len(report["label_names"]),
    }  # fmt: skip


def write(output_dir: Path, names: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> None:
    """Writes the matrix as a Markdown table, a CSV and a plot."""
    of = {(each["trained_on"], each["tested_on"]): each for each in cells}
    lines = ["UA (number of classes); one row per training corpus", ""]
    lines += [f"| | {' | '.join(f'on {name}' for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for trained in names:
        row = [f"{of[trained, tested]['UA']:.3f} ({of[trained, tested]['classes']})" for tested in names]
        lines.append(f"| {trained} | {' | '.join(row)} |")
    print("\n".join(lines))
    (output_dir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (
        atomic_write(output_dir / "table.csv") as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, list(cells[0]))
        table.writeheader()
        table.writerows(cells)
    side = 2.2 + 1.1 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    shades = [[of[trained, tested]["UA"] for tested in names] for trained in names]
    image = axes.imshow(shades, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="UA")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="tested on", ylabel="trained on")
    for (trained, tested), each in of.items():
        text = f"{each['UA']:.2f}\n{each['classes']} classes\nchance {1 / each['classes']:.2f}"
        place = (names.index(tested), names.index(trained))
        axes.text(*place, text, ha="center", va="center", fontsize=8, color="white" if each["UA"] > 0.55 else "black")
    figure.savefig(output_dir / "matrix.png")


if __name__ == "__main__":
    main()
