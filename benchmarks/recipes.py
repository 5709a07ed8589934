"""Comparisons of recipes: variations of a recipe over folds and seeds, and a recipe on each of several corpora.

    python -m benchmarks.recipes ablation configs/ravdess_small.yaml configs/ablations/ravdess_small.yaml \\
        --data_dir RAVDESS --output_dir out/ablation --folds 1 4 --seeds 42
    python -m benchmarks.recipes cross_corpus configs/ravdess_small.yaml --dataset_name ravdess emodb cremad \\
        --data_dir RAVDESS EMO-DB CREMA-D --output_dir out/cross_corpus

Other options are passed to every run of the training command. An interrupted command resumes.
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

import numpy as np
import yaml
from matplotlib.figure import Figure
from safetensors import safe_open

from benchmarks.results import add_command, parser_of, run
from ser.data.corpora.combine import NO_FOLDER
from ser.data.corpora.loading import find_corpus
from ser.evaluation.evaluate import evaluate, parse_arguments
from ser.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESAMPLES = 2_000
PREDICTIONS = {"validation": "validation_predictions.csv", "test": "predictions.csv"}
ABLATION = """Compares named variations of a recipe over folds and seeds in one table.

VARIATIONS.yaml maps a name to the options that differ from the recipe (`without SpecAugment: {specaugment_masks: 0}`);
the recipe itself is the first row. Every run has its own output directory. Scores are those of the validation
speakers, on which choices should be made; `--part test` is for choices that are already made. The command writes
table.md, table.csv and table.png: UA with its 95 % interval over clips, the difference to the recipe with the interval
of a paired bootstrap (the same clips for both), parameters and time."""
CROSS_CORPUS = """Trains on each of several corpora and tests on all: a matrix of UA with a row per training corpus.

On each corpus one model is trained by its own protocol (fold 1), whose test part is the diagonal; the other corpora
are tested as a whole. Every cell is scored on the classes that both corpora have under --label_map, so cells of a row
may differ in classes, and the chance level is printed in each. The command writes table.md, table.csv and
matrix.png."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser, commands = parser_of(__doc__)
    ablation = add_command(commands, "ablation", measure_ablation, ABLATION, takes_flags=True)
    ablation.add_argument("recipe", type=Path)
    ablation.add_argument("variations", type=Path)
    ablation.add_argument("--output_dir", type=Path, default=Path("out/ablation"))
    ablation.add_argument("--folds", type=int, nargs="+", default=[1])
    ablation.add_argument("--seeds", type=int, nargs="+", default=[42])
    ablation.add_argument("--part", choices=PREDICTIONS, default="validation")
    crossed = add_command(commands, "cross_corpus", measure_cross_corpus, CROSS_CORPUS, takes_flags=True)
    crossed.add_argument("recipe", type=Path)
    crossed.add_argument("--dataset_name", nargs="+", required=True)
    crossed.add_argument("--data_dir", nargs="+", help="a folder for each corpus, or none")
    crossed.add_argument("--label_map", default="default", help="YAML file of classes and their spellings")
    crossed.add_argument("--seed", type=int, default=42)
    crossed.add_argument("--cache_dir", help="folder of the feature cache")
    crossed.add_argument("--output_dir", type=Path, default=Path("out/cross_corpus"))
    run(parser, arguments)


def train(recipe: Path, flags: Sequence[str], output_dir: Path) -> None:
    """Trains a model, unless the run is finished."""
    if (output_dir / "metrics.json").exists():
        return
    print(f"# {output_dir}", flush=True)
    command = [sys.executable, str(ROOT / "run_ser.py"), str(recipe), *flags, "--output_dir", str(output_dir)]
    done = subprocess.run([*command, "--disable_tqdm", "true"], check=False)
    if done.returncode:
        sys.exit(f"error: {output_dir} ended with exit code {done.returncode}; the same command resumes it.")


def write_table(output_dir: Path, lines: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a Markdown table, and writes it to table.md and its rows to table.csv."""
    print("\n".join(lines))
    (output_dir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (
        atomic_write(output_dir / "table.csv") as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


# --- variations of a recipe ---


def measure_ablation(args: argparse.Namespace) -> dict[str, object]:
    variations = read_variations(args.variations, args.recipe.stem)
    for fold in args.folds:
        for seed in args.seeds:
            for name, changes in variations.items():
                flags = [*args.flags, "--fold", str(fold), "--seed", str(seed)]
                train_variation(args.recipe, changes, flags, folder(args, name, fold, seed), args.part)
    rows = table({name: results_of(args, name) for name in variations})
    write_variations(args.output_dir, rows, args)
    return {"part": args.part, "rows": rows}


def read_variations(path: Path, recipe: str) -> dict[str, dict[str, Any]]:
    """Returns the recipe itself under its own name, then the variations."""
    variations = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(variations, dict) or not all(isinstance(changes, dict) for changes in variations.values()):
        sys.exit(f"error: {path} is not a map of names to options.")
    if recipe in variations:
        sys.exit(f"error: {path} has a variation called {recipe}, which is the recipe's own name.")
    return {recipe: {}, **variations}


def folder(args: argparse.Namespace, name: str, fold: int, seed: int) -> Path:
    return args.output_dir / re.sub(r"\W+", "_", name) / f"fold{fold}_seed{seed}"


def predictions_of(output_dir: Path, part: str) -> Path:
    """Returns the path of a finished run's predictions for one part of its clips."""
    path = output_dir / PREDICTIONS[part]
    if not path.is_file():
        sys.exit(
            f"error: {output_dir} has no {path.name}, since it has no {part} set: compare by another --part, or give "
            "the recipe and its variations such a set (see --validation_share and --protocol of run_ser.py) in a new "
            "--output_dir."
        )
    return path


def flags_of(changes: Mapping[str, Any]) -> list[str]:
    """Returns a variation as options of a command line."""
    flags = []
    for name, value in changes.items():
        value = json.dumps(value) if isinstance(value, dict) else value
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def train_variation(
    recipe: Path, changes: Mapping[str, Any], flags: Sequence[str], output_dir: Path, part: str
) -> None:
    """Trains, unless the run is finished, and checks that it has predictions of the part to compare by."""
    train(recipe, [*flags, *flags_of(changes)], output_dir)
    predictions_of(output_dir, part)


def results_of(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Returns true classes `(clips,)`, hits `(seeds, clips)` over all folds, parameters, and minutes of a run."""
    seeds, minutes = [], []
    for seed in args.seeds:
        rows = []
        for fold in args.folds:
            output_dir = folder(args, name, fold, seed)
            with open(predictions_of(output_dir, args.part), newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
            minutes.append(json.loads((output_dir / "metrics.json").read_text())["duration_seconds"] / 60)
        seeds.append(sorted(rows, key=lambda row: row["file"]))
    with safe_open(output_dir / "model.safetensors", framework="np") as weights:
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        shapes = [weights.get_slice(key).get_shape() for key in list(weights.keys()) if not key.endswith(buffers)]
    return {
        "labels": np.array([row["label"] for row in seeds[0]]),
        "hits": np.array([[row["label"] == row["prediction"] for row in rows] for rows in seeds], float),
        "parameters": sum(int(np.prod(shape)) for shape in shapes),
        "minutes": float(np.mean(minutes)),
    }


def unweighted_accuracy(labels: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns UA `(draws,)`, averaged over seeds, of clips that count `weights` `(draws, clips)` times each."""
    recalls = []
    for label in np.unique(labels):
        of_class = labels == label
        drawn = weights[:, of_class]
        recalls.append(drawn @ hits.mean(0)[of_class] / drawn.sum(1).clip(min=1))
    return np.mean(recalls, axis=0)


def table(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per variation; the others are compared with the first."""
    base = next(iter(found.values()))
    clips = len(base["labels"])
    draws = np.random.default_rng(0).multinomial(clips, np.full(clips, 1 / clips), RESAMPLES)
    once = np.ones((1, clips))
    rows = []
    for name, each in found.items():
        if not np.array_equal(each["labels"], base["labels"]):
            sys.exit(f"error: {name} was scored on different clips than the recipe.")
        score, drawn = (unweighted_accuracy(each["labels"], each["hits"], w) for w in (once, draws))
        reference, drawn_reference = (unweighted_accuracy(base["labels"], base["hits"], w) for w in (once, draws))
        low, high = np.percentile(drawn, [2.5, 97.5])
        difference = np.percentile(drawn - drawn_reference, [2.5, 97.5])
        rows.append({
            "name": name, "UA": float(score[0]), "UA_low": low, "UA_high": high,
            "difference": float(score[0] - reference[0]), "difference_low": difference[0],
            "difference_high": difference[1], "parameters": each["parameters"], "minutes": each["minutes"],
        })  # fmt: skip
    return rows


def write_variations(output_dir: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    heading = f"{args.part} UA, folds {', '.join(map(str, args.folds))}, seeds {', '.join(map(str, args.seeds))}"
    lines = [f"{heading}; 95 % intervals by clip", ""]
    lines += ["| | UA | difference to the recipe | parameters | minutes a run |", "|---|---|---|---|---|"]
    for index, row in enumerate(rows):
        worth = f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
        lines.append(
            f"| {row['name']} | {row['UA']:.3f} ({row['UA_low']:.3f} to {row['UA_high']:.3f}) | "
            f"{worth if index else ''} | {row['parameters'] / 1e6:.2f} M | {row['minutes']:.1f} |"
        )
    write_table(output_dir, lines, rows)
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(rows)), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    scores, ends = [row["UA"] for row in rows], np.array([[row["UA_low"], row["UA_high"]] for row in rows]).T
    axes.errorbar(scores, range(len(rows)), xerr=np.abs(ends - scores), fmt="o", capsize=3)
    axes.axvline(scores[0], color="#bbbbbb", zorder=0)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(heading)
    figure.savefig(output_dir / "table.png")


# --- several corpora ---


def measure_cross_corpus(args: argparse.Namespace) -> dict[str, object]:
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
        train(args.recipe, [*args.flags, *place, "--seed", str(args.seed)], model)
        for tested, where in places.items():
            part = part_of(model) if tested == trained else []
            report = score(model, [*where, *part], args, args.output_dir / trained / f"on_{tested}")
            cells.append(cell(trained, tested, report))
    write_matrix(args.output_dir, list(places), cells)
    return {"cells": cells}


def source(name: str, folder: str, cache_dir: str | None) -> list[str]:
    """Returns the options of one corpus."""
    place = [] if folder == NO_FOLDER else ["--data_dir", folder]
    return ["--dataset_name", name, *place, *(["--cache_dir", cache_dir] if cache_dir else [])]


def part_of(model: Path) -> list[str]:
    """Returns the options for the test part of a run's own corpus."""
    protocol = json.loads((model / "metrics.json").read_text(encoding="utf-8"))["protocol"].partition("/")[2]
    named = re.fullmatch(r"(?P<name>.+?)(-fold(?P<fold>\d+))?", protocol)
    assert named is not None  # the pattern matches any name
    return ["--protocol", named["name"], "--fold", named["fold"] or "1"]


def score(model: Path, flags: Sequence[str], args: argparse.Namespace, output_dir: Path) -> dict[str, Any]:
    """Returns the report of `evaluate_ser.py` for a model on a corpus; an existing report is reused."""
    if (output_dir / "metrics.json").exists():
        return json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))
    more = ["--label_map", args.label_map, "--seed", str(args.seed), "--output_dir", str(output_dir)]
    return evaluate(*parse_arguments([str(model), *flags, *more], CROSS_CORPUS))


def cell(trained: str, tested: str, report: Mapping[str, Any]) -> dict[str, Any]:
    low, high = report["intervals"]["by_clip"]["UA"]
    return {
        "trained_on": trained, "tested_on": tested, "protocol": report["protocol"], "UA": report["UA"],
        "UA_low": low, "UA_high": high, "WA": report["WA"], "clips": report["n_clips"],
        "classes": len(report["label_names"]),
    }  # fmt: skip


def write_matrix(output_dir: Path, names: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> None:
    """Writes the matrix as a Markdown table, a CSV and a plot."""
    of = {(each["trained_on"], each["tested_on"]): each for each in cells}
    lines = ["UA (number of classes); one row per training corpus", ""]
    lines += [f"| | {' | '.join(f'on {name}' for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for trained in names:
        row = [f"{of[trained, tested]['UA']:.3f} ({of[trained, tested]['classes']})" for tested in names]
        lines.append(f"| {trained} | {' | '.join(row)} |")
    write_table(output_dir, lines, cells)
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
