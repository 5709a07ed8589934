"""How many recordings of one's own fine-tuning needs: UA on a new speaker, by the number of clips of each class.

    python -m benchmarks.finetuning FOLD RAVDESS [--sizes 0 1 2 4 8 16] [--recipe configs/finetune.yaml] [--json FILE]

FOLD is a fold's model. Each of its test actors, who were not in its training data, is the test set once; the training
set is `size` random clips of each class from the other test actors. Size 0 is the model as it is. UA is the mean over
the test actors.
"""

import argparse
import contextlib
import csv
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results import add_json, speakers_of, write_results
from ser.commands.evaluate import main as evaluate
from ser.commands.train import main as train
from ser.data.corpora import Corpus, load_corpus


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("ravdess")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16], help="clips of each class")
    parser.add_argument("--recipe", default="configs/finetune.yaml")
    parser.add_argument("--seed", type=int, default=0)
    add_json(parser)
    args = parser.parse_args(arguments)
    corpus = load_corpus("ravdess", args.ravdess)
    actors = speakers_of(args.model, "test")
    table = []
    print(f"| clips of each class | UA on a new speaker (mean of {len(actors)}) | {' | '.join(actors)} |")
    print("|---|---|" + "---|" * len(actors))
    for size in args.sizes:
        found = [score(corpus, args.model, actors, test, size, args.recipe, args.seed) for test in actors]
        table.append({"clips": size, "UA": float(np.mean(found)), "by_actor": dict(zip(actors, found, strict=True))})
        print(f"| {size} | {np.mean(found):.3f} | " + " | ".join(f"{ua:.3f}" for ua in found) + " |", flush=True)
    write_results(args.json, {"by_clips": table})


def score(corpus: Corpus, model: Path, actors: list[str], test: str, size: int, recipe: str, seed: int) -> float:
    """Returns the UA on one actor of a model that was fine-tuned on clips of the others."""
    random = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(corpus.label_names):
        of_class = [row for row, own in enumerate(corpus.labels) if own == label and corpus.speakers[row] in actors]
        others = [row for row in of_class if corpus.speakers[row] != test]
        rows += [(row, name, "train") for row in random.permutation(others)[:size].tolist()]
        rows += [(row, name, "test") for row in of_class if corpus.speakers[row] == test]
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "clips.csv", Path(folder) / "out"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "label", "speaker", "split"])
            for row, name, part in rows:
                if part == "test" or size:
                    path = Path(corpus.source) / corpus.clips[row]["file"]
                    writer.writerow([path.resolve(), name, corpus.speakers[row], part])
        common = ["--dataset_name", str(table), "--output_dir", str(out), "--report_to", "none"]
        with contextlib.redirect_stdout(sys.stderr):
            if size:
                train([recipe, "--model_name_or_path", str(model), *common, "--disable_tqdm", "true"])
            else:
                evaluate([str(model), *common[:4]])
        return json.loads((out / "metrics.json").read_text())["UA"]


if __name__ == "__main__":
    main()
