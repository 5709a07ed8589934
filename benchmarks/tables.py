"""Collects the predictions of finished folds in results/, and prints tables of scores from them.

    python -m benchmarks.tables --collect out/emobox --recipe ravdess_small    # folds of `run_ser.py --fold all`
    python -m benchmarks.tables                                                # all tables, Markdown
    python -m benchmarks.tables --against ravdess_small                        # with differences to one recipe

`results/CORPUS/PROTOCOL/RECIPE/seedS/foldF.csv` has one row per test clip: its file name, speaker, label, prediction
and the probability of each class. A table has one row per recipe: UA and WA over all test clips of all folds (pooled),
averaged over seeds, with 95 % bootstrap intervals over clips and over speakers (the same draws for every recipe), the
mean and standard deviation of UA over folds, and the difference in pooled UA to another recipe with its paired
interval over speakers.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recipes import unweighted_accuracy
from benchmarks.results import add_json, write_results
from ser.files import atomic_write

RESULTS = Path(__file__).resolve().parents[1] / "results"
RESAMPLES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--collect", type=Path, help="output directory of a finished run, of one fold or of all")
    parser.add_argument("--recipe", help="name of the recipe of --collect")
    parser.add_argument("--against", help="recipe with which the others are compared")
    add_json(parser)
    args = parser.parse_args()
    if args.collect:
        if not args.recipe:
            parser.error("--collect needs the name of the recipe: add --recipe NAME")
        collect(args.collect, args.recipe, args.results)
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for protocol in sorted({path.parents[2] for path in args.results.glob("*/*/*/seed*/fold*.csv")}):
        name = protocol.relative_to(args.results).as_posix()
        found[name] = rows_of(protocol, args.against)
        print(f"### {name}\n\n{markdown(found[name])}\n")
    write_results(args.json, found)


def collect(output_dir: Path, recipe: str, results: Path) -> None:
    """
    Copies the predictions of each finished fold to `results`, with probabilities rounded to four digits; of late
    fusion also those of each classifier alone, as the recipes `RECIPE_images` and `RECIPE_speech`.
    """
    folders = sorted(output_dir.glob("fold*/metrics.json")) or [output_dir / "metrics.json"]
    for path in folders:
        report = json.loads(path.read_text(encoding="utf-8"))
        protocol, _, fold = report["protocol"].rpartition("-fold")
        for predictions in sorted(path.parent.glob("predictions*.csv")):
            name = recipe + predictions.stem.removeprefix("predictions")
            target = results / protocol / name / f"seed{report['seed']}" / f"fold{fold}.csv"
            copy_predictions(predictions, target)
            print(target)


def copy_predictions(source: Path, target: Path) -> None:
    """Writes the columns that tables need, without those that only a report needs."""
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = [name for name in rows[0] if name.startswith("p_")]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["clip", "speaker", "label", "prediction", *classes])
        for row in rows:
            cells = [Path(row["file"]).name, row["speaker"], row["label"], row["prediction"]]
            table.writerow([*cells, *(f"{float(row[name]):.4f}" for name in classes)])


def read_recipe(folder: Path) -> dict[str, Any]:
    """
    Reads the predictions of a recipe.

    Returns:
        `clips`, `speakers`, `labels` and `folds`, arrays of N, and `hits`, `(seeds, N)`, for the folds that all seeds
        have, sorted by fold and clip.
    """
    by_seed: dict[str, dict[tuple[int, str], dict[str, str]]] = defaultdict(dict)
    for path in folder.glob("seed*/fold*.csv"):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                by_seed[path.parent.name][int(path.stem.removeprefix("fold")), row["clip"]] = row
    keys = sorted(set.intersection(*map(set, by_seed.values())))
    first = next(iter(by_seed.values()))
    hits = [[rows[key]["label"] == rows[key]["prediction"] for key in keys] for rows in by_seed.values()]
    return {
        "clips": np.array([clip for _, clip in keys]),
        "folds": np.array([fold for fold, _ in keys]),
        "speakers": np.array([first[key]["speaker"] for key in keys]),
        "labels": np.array([first[key]["label"] for key in keys]),
        "hits": np.array(hits, float),
    }


def rows_of(protocol: Path, against: str | None = None) -> list[dict[str, Any]]:
    """Returns one row of figures for each recipe of a protocol, the best first."""
    found = {folder.name: read_recipe(folder) for folder in sorted(protocol.iterdir()) if folder.is_dir()}
    rows = []
    for name, recipe in found.items():
        labels, hits, speakers = recipe["labels"], recipe["hits"], recipe["speakers"]
        once = np.ones((1, len(labels)))
        by_fold = [
            unweighted_accuracy(labels[own], hits[:, own], once[:, own])[0]
            for own in (recipe["folds"] == fold for fold in np.unique(recipe["folds"]))
        ]
        row = {
            "recipe": name,
            "seeds": len(hits),
            "folds": len(by_fold),
            "clips": len(labels),
            "UA": float(unweighted_accuracy(labels, hits, once)[0]),
            "WA": float(hits.mean()),
            "UA_mean_of_folds": float(np.mean(by_fold)),
            "UA_std_of_folds": float(np.std(by_fold, ddof=1)) if len(by_fold) > 1 else None,
            "by_clip": interval(unweighted_accuracy(labels, hits, clip_draws(len(labels)))),
            "by_speaker": interval(unweighted_accuracy(labels, hits, speaker_draws(speakers))),
        }
        other = found.get(against or "")
        if other is not None and name != against and np.array_equal(other["clips"], recipe["clips"]):
            draws = speaker_draws(speakers)
            drawn = [unweighted_accuracy(labels, each["hits"], draws) for each in (recipe, other)]
            both = [float(unweighted_accuracy(labels, each["hits"], once)[0]) for each in (recipe, other)]
            row |= {"difference": both[0] - both[1], "difference_interval": interval(drawn[0] - drawn[1])}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["UA"])


def clip_draws(count: int) -> np.ndarray:
    """Returns how often each clip is drawn, `(draws, clips)`, the same for all recipes."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)


def speaker_draws(speakers: np.ndarray) -> np.ndarray:
    """Returns how often each clip is drawn if whole speakers are drawn."""
    names, index = np.unique(speakers, return_inverse=True)
    times = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    return times[:, index]


def interval(drawn: np.ndarray) -> list[float]:
    return np.percentile(drawn, [2.5, 97.5]).tolist()


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| recipe | seeds | folds | UA pooled | by clip | by speaker | UA, mean of folds | WA | difference |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        spread = "" if row["UA_std_of_folds"] is None else f" ± {row['UA_std_of_folds']:.3f}"
        difference = ""
        if "difference" in row:
            low, high = row["difference_interval"]
            difference = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        bounds = ["{:.3f} to {:.3f}".format(*row[unit]) for unit in ("by_clip", "by_speaker")]
        mean = f"{row['UA_mean_of_folds']:.3f}{spread}"
        cells = [row["recipe"], row["seeds"], row["folds"], f"{row['UA']:.3f}", *bounds, mean, f"{row['WA']:.3f}"]
        lines.append("| " + " | ".join(map(str, [*cells, difference])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
