"""Adaptation to new speakers: by unlabelled clips (enrollment), and by labelled clips (fine-tuning).

python -m benchmarks.adaptation enrollment --model_dir OUT [--data_dir RAVDESS] [--json enrollment.json]
python -m benchmarks.adaptation finetuning FOLD RAVDESS [--sizes 0 1 2 4 8 16] [--recipe configs/finetune.yaml]
"""

import argparse
import contextlib
import csv
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.results import add_command, parser_of, run, speakers_of
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import RELEVANCE, map_shift, population_mean
from ser.arguments import ClipArguments
from ser.commands.evaluate import main as evaluate
from ser.commands.train import main as train
from ser.data.batches import PairCollator
from ser.data.corpora import Corpus, load_corpus
from ser.data.embedding_cache import can_cache_embeddings, layer_statistics_of
from ser.data.prepare import read_corpus, set_up_logging, with_features
from ser.evaluation.adaptation import shifted_logits
from ser.evaluation.metrics import confusion_matrix, scores_from_confusion
from ser.models import load_feature_extractor, load_model
from ser.training.arguments import SERTrainingArguments
from ser.training.pooled_statistics import PooledFeatures, fit_feature_statistics, pooled_features
from ser.training.trainer import SERTrainer

OTHERS = "all others"  # the row in which every clip that is not scored is enrolled
ALL = "all clips (transductive)"
ENROLLMENT = """Measures UA over the folds of a run by the number of unlabelled clips of a speaker that are enrolled.

OUT holds fold_1 to fold_k, as written by `run_ser.py --fold all`. In each of five draws, 30 clips of each test speaker
are scored, stratified by emotion. They are the same for every n and never enrolled; the profile is that of the first n
of the speaker's other clips, in random order. The row n = 8 is thus the protocol `+enrolled8`. Profiles of neutral
clips only have separate rows, and so has "all clips", whose profile includes the scored clips (transductive).

The features of every clip are computed once for each fold, and classified by the model's fusion and head. A model
without feature statistics (trained by an earlier version) gets those of its training part here."""
FINETUNING = """Measures UA on a new speaker by the number of clips of each class that a model is fine-tuned on.

FOLD is a fold's model. Each of its test actors, who were not in its training data, is the test set once; the training
set is `size` random clips of each class from the other test actors. Size 0 is without fine-tuning. UA is the mean over
the test actors."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser, commands = parser_of(__doc__)
    enrollment = add_command(commands, "enrollment", measure_enrollment, ENROLLMENT)
    enrollment.add_argument("--model_dir", type=Path, required=True, help="a finished run of all folds")
    enrollment.add_argument("--data_dir", nargs="+", help="folder of the corpus (default: as in training)")
    enrollment.add_argument("--cache_dir", help="folder of the feature cache (default: as in training)")
    enrollment.add_argument("--scored", type=int, default=30, help="clips of each test speaker that are scored")
    enrollment.add_argument(
        "--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="numbers of enrolled clips"
    )
    enrollment.add_argument("--draws", type=int, default=5, help="random draws of clips")
    enrollment.add_argument("--neutral", default="neutral", help="class of the rows of neutral clips")
    enrollment.add_argument(
        "--relevance", type=float, default=RELEVANCE, help="number of clips that the training mean counts as"
    )
    enrollment.add_argument("--seed", type=int, default=0)
    enrollment.add_argument("--batch_size", type=int, default=8)
    finetuning = add_command(commands, "finetuning", measure_finetuning, FINETUNING)
    finetuning.add_argument("model", type=Path)
    finetuning.add_argument("ravdess")
    finetuning.add_argument("--sizes", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16], help="clips of each class")
    finetuning.add_argument("--recipe", default="configs/finetune.yaml")
    finetuning.add_argument("--seed", type=int, default=0)
    run(parser, arguments)


# --- unlabelled clips: enrollment ---


class Fold(NamedTuple):
    """A model, the features of its test part with their labels and speakers, and the population's mean."""

    model: MaxMViTForAudioClassification
    test: PooledFeatures
    population: np.ndarray


def measure_enrollment(args: argparse.Namespace) -> dict[str, object]:
    if min(args.scored, args.draws, args.batch_size, *args.sizes) < 1 or not args.relevance >= 0:
        sys.exit("error: --scored, --sizes, --draws and --batch_size are 1 or more, --relevance is 0 or more")
    folders = sorted(args.model_dir.glob("fold_*"), key=lambda folder: int(folder.name.removeprefix("fold_")))
    if not folders:
        sys.exit(f"error: {args.model_dir} has no fold_1: name a folder that `run_ser.py --fold all` has finished.")
    folds = [read_fold(folder, args) for folder in folders]
    table = [measure_row(row, folds, args) for row in rows_of(folds, args)]
    print(f"{args.model_dir}: {len(folds)} folds, relevance {args.relevance:g}, {args.draws} draws")
    print("| enrolled | UA | +- over draws | against none |\n|---|---|---|---|")
    for row in table:
        row["gain"] = row["UA"] - table[0]["UA"]
        print(f"| {row['enrolled']} | {row['UA']:.3f} | {row['std']:.3f} | {row['gain']:+.3f} |")
    return {"relevance": args.relevance, "folds": len(folds), "rows": table}


def read_fold(folder: Path, args: argparse.Namespace) -> Fold:
    """Reads the model of a fold and computes the features of its test part."""
    parts = {clip["file"]: clip["part"] for clip in json.loads((folder / "splits.json").read_text())["clips"]}
    report = json.loads((folder / "metrics.json").read_text())
    model, extractor = load_model(folder), load_feature_extractor(folder)
    trainer_args = SERTrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=args.batch_size, report_to=["none"], disable_tqdm=True
    )
    set_up_logging(trainer_args)
    clip_args = clip_arguments(report["data_arguments"], args)
    corpus = with_features(read_corpus(clip_args, trainer_args), extractor, clip_args, trainer_args)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if corpus.label_names != names:
        sys.exit(
            f"error: {folder} has the classes {', '.join(names)}, but the corpus has {', '.join(corpus.label_names)}."
        )
    statistics = None
    trained: Any = SimpleNamespace(**{"closed_form_classifier": False, **report["training_arguments"]})
    if can_cache_embeddings(model.config, trained):
        place = clip_args.cache_dir
        statistics = layer_statistics_of([corpus.clips], model, extractor, place, trainer_args.device)
    collator = PairCollator(extractor, layer_statistics=statistics, branches=model.config.image_names)
    test = part_of(corpus, parts, "test")
    if not len(test):
        sys.exit(f"error: no test clip of {folder / 'splits.json'} is in {corpus.source}: name its --data_dir.")
    trainer = SERTrainer(
        model=model, args=trainer_args, data_collator=collator, eval_dataset=test, processing_class=extractor
    )
    if not model.config.feature_statistics:
        fit_feature_statistics(trainer, part_of(corpus, parts, "train"))
    print(f"{folder}: {len(test)} test clips", file=sys.stderr)
    return Fold(model, pooled_features(trainer, test), population_mean(model))


def clip_arguments(trained_on: dict[str, Any], args: argparse.Namespace) -> ClipArguments:
    """Returns the arguments of the corpus as in training, except for its folders."""
    own = {name: value for name, value in trained_on.items() if name in ClipArguments.__dataclass_fields__}
    own |= {"protocol": None, "fold": "1", "test_speakers": None, "cache_features": True}
    own |= {name: getattr(args, name) for name in ("data_dir", "cache_dir") if getattr(args, name) is not None}
    return ClipArguments(**own)


def part_of(corpus: Corpus, parts: dict[str, str], part: str) -> Any:
    return corpus.clips.select([row for row, file in enumerate(corpus.files) if parts.get(file) == part])


def rows_of(folds: Sequence[Fold], args: argparse.Namespace) -> list[tuple[str, int | str, str | None]]:
    """Returns the name of each row, the number of enrolled clips, and their class (`None`: all classes). Rows for
    which a speaker has too few clips are left out with a message."""
    rows: list[tuple[str, int | str, str | None]] = [("none", 0, None)]
    rows += [(f"{size}", size, None) for size in args.sizes]
    rows += [(OTHERS, OTHERS, None)]
    labels = [*folds[0].model.config.id2label.values()]
    if args.neutral in labels:
        rows += [(f"{size} {args.neutral}", size, args.neutral) for size in (1, 2)]
    rows += [(ALL, ALL, None)]
    kept = []
    for name, size, kind in rows:
        counts = [
            len(pool_of(fold, own, kind, args, 0)[1]) for fold in folds for own in rows_by_speaker(fold).values()
        ]
        if isinstance(size, int) and min(counts) < size:
            print(
                f"left out: {name}, of which a speaker has {min(counts)} clips besides those scored", file=sys.stderr
            )
        else:
            kept.append((name, size, kind))
    return kept


def rows_by_speaker(fold: Fold) -> dict[str | None, list[int]]:
    """Returns the rows of each test speaker's clips."""
    rows: dict[str | None, list[int]] = defaultdict(list)
    for row, speaker in enumerate(fold.test.speakers):
        rows[speaker].append(row)
    return rows


def pool_of(
    fold: Fold, rows: Sequence[int], kind: str | None, args: argparse.Namespace, draw: int
) -> tuple[list[int], list[int]]:
    """Returns the clips of a speaker that are scored in one draw, and those that may be enrolled, in random order."""
    rng = np.random.default_rng((args.seed, draw, *rows[:2]))
    order = rng.permutation(rows).tolist()
    scored = stratified([fold.test.labels[row] for row in order], args.scored)
    names = fold.model.config.id2label
    others = [row for place, row in enumerate(order) if place not in scored]
    return (
        [order[place] for place in sorted(scored)],
        [row for row in others if kind is None or names[fold.test.labels[row]] == kind],
    )


def stratified(labels: Sequence[int], count: int) -> set[int]:
    """Returns the indices of `count` labels with each class in proportion: the labels of a class are spread evenly
    from 0 to 1, and the lowest ones are chosen."""
    of_class: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        of_class[label].append(place)
    keys = [((rank + 0.5) / len(places), place) for places in of_class.values() for rank, place in enumerate(places)]
    return {place for _, place in sorted(keys)[:count]}


def measure_row(
    row: tuple[str, int | str, str | None], folds: Sequence[Fold], args: argparse.Namespace
) -> dict[str, Any]:
    """Returns the mean UA over the folds, and its standard deviation over draws."""
    name, size, kind = row
    of_draws = [[fold_score(fold, size, kind, args, draw) for fold in folds] for draw in range(args.draws)]
    means = np.mean(of_draws, axis=1)
    return {
        "enrolled": name,
        "UA": float(means.mean()),
        "std": float(means.std()),
        "folds": np.mean(of_draws, 0).tolist(),
    }


def fold_score(fold: Fold, size: int | str, kind: str | None, args: argparse.Namespace, draw: int) -> float:
    """Returns the UA of the scored clips of all test speakers of a fold, each relative to its speaker's profile."""
    features = fold.test.features.numpy()
    rows, shifts = [], []
    for own in rows_by_speaker(fold).values():
        scored, pool = pool_of(fold, own, kind, args, draw)
        enrolled = own if size == ALL else pool if size == OTHERS else pool[: int(size)]
        mean = features[enrolled].mean(0) if enrolled else fold.population
        shift = map_shift(mean, len(enrolled), fold.population, args.relevance)
        rows += scored
        shifts += [shift] * len(scored)
    logits = shifted_logits(fold.model, fold.test.features[rows], torch.from_numpy(np.stack(shifts)).float())
    truth = [fold.test.labels[row] for row in rows]
    matrix = confusion_matrix(truth, logits.argmax(1), logits.shape[1])
    return float(scores_from_confusion(matrix)["UA"])


# --- labelled clips: fine-tuning ---


def measure_finetuning(args: argparse.Namespace) -> dict[str, object]:
    corpus = load_corpus("ravdess", args.ravdess)
    actors = speakers_of(args.model, "test")
    table = []
    print(f"| clips of each class | UA on a new speaker (mean of {len(actors)}) | {' | '.join(actors)} |")
    print("|---|---|" + "---|" * len(actors))
    for size in args.sizes:
        found = [finetuned_score(corpus, args.model, actors, test, size, args.recipe, args.seed) for test in actors]
        table.append({"clips": size, "UA": float(np.mean(found)), "by_actor": dict(zip(actors, found, strict=True))})
        print(f"| {size} | {np.mean(found):.3f} | " + " | ".join(f"{ua:.3f}" for ua in found) + " |", flush=True)
    return {"by_clips": table}


def finetuned_score(
    corpus: Corpus, model: Path, actors: list[str], test: str, size: int, recipe: str, seed: int
) -> float:
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
