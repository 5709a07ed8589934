"""Compares named variations of a recipe over folds and seeds in one table.

    python -m benchmarks.ablation configs/ravdess_small.yaml configs/ablations/ravdess_small.yaml \\
        --data_dir RAVDESS --output_dir out/ablation --folds 1 4 --seeds 42

VARIATIONS.yaml maps a name to the options that differ from the recipe (`without SpecAugment: {specaugment_masks: 0}`);
the recipe itself is the first row. Every run has its own output directory, and an interrupted command resumes. Scores
are those of the validation speakers, by which choices are made; `--part test` is for choices that have been made
already. The command writes table.md, table.csv and table.png: UA with its 95 % interval over clips, the difference to
the recipe with the interval of a paired bootstrap (the same clips for both), parameters and time.
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

from benchmarks.results import add_json, write_results
from ser.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESAMPLES = 2_000
PREDICTIONS = {"validation": "validation_predictions.csv", "test": "predictions.csv"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("variations", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("out/ablation"))
    parser.add_argument("--folds", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--part", choices=PREDICTIONS, default="validation")
    add_json(parser)
    args, flags = parser.parse_known_args()
    variations = read_variations(args.variations, args.recipe.stem)
    for fold in args.folds:
        for seed in args.seeds:
            for name, changes in variations.items():
                run(
                    args.recipe,
                    changes,
                    [*flags, "--fold", str(fold), "--seed", str(seed)],
                    folder(args, name, fold, seed),
                    args.part,
                )
    rows = table({name: results(args, name) for name in variations})
    write(args.output_dir, rows, args)
    write_results(args.json, {"part": args.part, "rows": rows})


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


def run(recipe: Path, changes: Mapping[str, Any], flags: Sequence[str], output_dir: Path, part: str) -> None:
    """Trains, unless the run is finished, and checks that it has predictions of the part to compare by."""
    if (output_dir / "metrics.json").exists():
        predictions_of(output_dir, part)
        return
    command = [sys.executable, str(ROOT / "run_ser.py"), str(recipe), *flags, *flags_of(changes)]
    print(f"# {output_dir}", flush=True)
    done = subprocess.run([*command, "--output_dir", str(output_dir), "--disable_tqdm", "true"], check=False)
    if done.returncode:
        sys.exit(f"error: {output_dir} ended with exit code {done.returncode}; the same command resumes it.")
    predictions_of(output_dir, part)


def results(args: argparse.Namespace, name: str) -> dict[str, Any]:
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


def write(output_dir: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    heading = f"{args.part} UA, folds {', '.join(map(str, args.folds))}, seeds {', '.join(map(str, args.seeds))}"
    lines = [f"{heading}; 95 % intervals by clip", ""]
    lines += ["| | UA | difference to the recipe | parameters | minutes a run |", "|---|---|---|---|---|"]
    for index, row in enumerate(rows):
        worth = f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
        lines.append(
            f"| {row['name']} | {row['UA']:.3f} ({row['UA_low']:.3f} to {row['UA_high']:.3f}) | "
            f"{worth if index else ''} | {row['parameters'] / 1e6:.2f} M | {row['minutes']:.1f} |"
        )
    print("\n".join(lines))
    (output_dir / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (
        atomic_write(output_dir / "table.csv") as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(rows)), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    scores, ends = [row["UA"] for row in rows], np.array([[row["UA_low"], row["UA_high"]] for row in rows]).T
    axes.errorbar(scores, range(len(rows)), xerr=np.abs(ends - scores), fmt="o", capsize=3)
    axes.axvline(scores[0], color="#bbbbbb", zorder=0)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(heading)
    figure.savefig(output_dir / "table.png")


if __name__ == "__main__":
    main()
