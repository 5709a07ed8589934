"""Compares linear classifiers on a frozen speech encoder, on the validation speakers of some folds.

    python -m benchmarks.speech_classifiers configs/ravdess_whisper.yaml --data_dir RAVDESS --validation_share 0.2 \
        [--folds 1 4] [--json FILE]

Other options are those of the training command, with `--closed_form_classifier`. The features are those of the model,
with altered copies and without: logistic regression (scikit-learn, classes balanced) by C, linear discriminant
analysis by its shrinkage, and with the shrinkage that training chooses by leaving out training speakers.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.results import take_json, write_results
from ser.cli import parse_arguments
from ser.data.embedding_cache import layer_statistics_of
from ser.data.prepare import read_corpus, set_up_logging, with_features
from ser.evaluation.metrics import confusion_matrix, scores_from_confusion
from ser.models import make_config, make_feature_extractor, make_model, name_classes
from ser.training.closed_form import SHRINKAGES, Scatter, encoder_features, fit_discriminant, training_features
from ser.training.run import split_of, with_copies

C = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 4])
    path, others = take_json(sys.argv[1:])
    own, others = parser.parse_known_args(others)
    model_args, data_args, args = parse_arguments([*others, "--report_to=none"])
    set_up_logging(args)
    extractor = make_feature_extractor(model_args)
    corpus = with_features(read_corpus(data_args, args), extractor, data_args, args)
    model = make_model(name_classes(make_config(model_args), corpus.label_names), model_args)
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for fold in own.folds:
        split = split_of(corpus, fold, data_args, args)
        validation = corpus.clips.select(split.validation)
        parts = {"without copies": corpus.clips.select(split.train)}
        if args.waveform_copies:
            parts["with copies"] = with_copies(corpus, split.train, extractor, data_args, args)
        kept = layer_statistics_of([corpus.clips, *parts.values()], model, extractor, data_args.cache_dir, args.device)
        truth = np.asarray(validation["label"][:])
        for kind, clips in parts.items():
            branch = model.branches()["speech"]
            features, labels, speakers = training_features(branch, clips, kept)
            statistics = torch.stack([kept[versions.contents[0]] for versions in validation["spectrograms"]])
            held_out = encoder_features(branch, statistics)
            for name, answers in answers_of(features, labels, speakers, held_out, len(corpus.label_names)):
                counts = confusion_matrix(truth, answers, len(corpus.label_names))
                found[f"{name}, {kind}"][fold] = float(scores_from_confusion(counts)["UA"])
                print(f"fold {fold}: {name}, {kind}: UA {found[f'{name}, {kind}'][fold]:.3f}", flush=True)
    for name, by_fold in found.items():
        print(f"{name}: UA {np.mean([*by_fold.values()]):.3f} ({', '.join(f'{ua:.3f}' for ua in by_fold.values())})")
    write_results(path, {name: {str(fold): ua for fold, ua in by_fold.items()} for name, by_fold in found.items()})


def answers_of(
    features: torch.Tensor, labels: torch.Tensor, speakers: list[int], held_out: torch.Tensor, num_labels: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of each classifier and its answers for the held-out features."""
    for strength in C:
        machine = LogisticRegression(C=strength, max_iter=500, class_weight="balanced")
        yield f"logistic regression, C {strength:g}", machine.fit(features, labels).predict(held_out)
    center = features.mean(0)
    scatter = Scatter.of(features - center, labels, num_labels)
    for shrinkage in SHRINKAGES:
        weight, bias = scatter.discriminant(shrinkage)
        answers = ((held_out - center) @ weight.T + bias).argmax(1).numpy()
        yield f"discriminant analysis, shrinkage {shrinkage:g}", answers
    fitted = fit_discriminant(features, labels, speakers, num_labels)
    answers = (held_out @ fitted.weight.T + fitted.bias).argmax(1).numpy()
    yield "discriminant analysis, shrinkage chosen in training", answers


if __name__ == "__main__":
    main()
