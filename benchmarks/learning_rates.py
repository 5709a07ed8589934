"""Compares learning rates on the demo recipe: 0.02 of the paper, 0.0002 and the recipe's own, with a plot.

    python -m benchmarks.learning_rates --picture docs/learning_rates.png

The paper (Table 2) trains every branch at 0.02; its re-implementation settled on 0.0002. Both are run with
reduce_lr_on_plateau, as there, and the recipe's own rate with its cosine schedule, on the same model, clips and seed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.results import add_json, write_results
from ser.training.checkpoints import last_checkpoint

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "demo.yaml"
PLATEAU = ["--lr_scheduler_type", "reduce_lr_on_plateau"]
RUNS = {
    "0.02 (the paper)": ["--learning_rate", "0.02", *PLATEAU],
    "0.0002 (its re-implementation)": ["--learning_rate", "0.0002", *PLATEAU],
    "0.002, cosine (the demo recipe)": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", default="docs/learning_rates.png", help="file of the plot")
    parser.add_argument("--cache_dir", help="folder for the demo corpus and its features")
    add_json(parser)
    args = parser.parse_args()
    cache = ["--cache_dir", args.cache_dir] if args.cache_dir else []
    histories, scores = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, flags) in enumerate(RUNS.items()):
            output = Path(folder) / str(index)
            command = [sys.executable, str(ROOT / "run_ser.py"), str(RECIPE), *flags, *cache, "--report_to", "none"]
            subprocess.run([*command, "--output_dir", str(output)], check=True)
            checkpoint = last_checkpoint(output)
            assert checkpoint is not None  # written by run_ser.py
            state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
            histories[name] = state["log_history"]
            scores[name] = json.loads((output / "metrics.json").read_text())["UA"]
    plot(histories, Path(args.picture))
    print("\n".join(f"{name}: test UA {score:.3f}" for name, score in scores.items()))
    write_results(args.json, {"test_UA": scores, "histories": histories})


def plot(histories: dict[str, list[dict]], path: Path) -> None:
    figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("loss", "eval_UA"), ("training loss", "validation UA"), strict=True
    ):
        for name, history in histories.items():
            points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    axes.axhline(0.25, color="#666666", linestyle=":", label="chance")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
