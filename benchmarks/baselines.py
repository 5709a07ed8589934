"""Baselines: a support vector machine on hand-made features, and linear classifiers on a frozen speech encoder.

    python -m benchmarks.baselines classical RAVDESS --protocol emobox luna-jimenez
    python -m benchmarks.baselines speech configs/ravdess_whisper.yaml --data_dir RAVDESS --validation_share 0.2 \\
        [--folds 1 4]

`speech` takes the arguments of run_ser.py.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import librosa
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from audio_maxmvit import read_audio
from benchmarks.results import add_command, add_ravdess, parser_of, run
from ser.cli import parse_arguments
from ser.data.corpora import Corpus, load_corpus
from ser.data.embedding_cache import layer_statistics_of
from ser.data.prepare import read_corpus, set_up_logging, with_features
from ser.data.protocols import make_split, n_folds
from ser.evaluation.metrics import confusion_matrix, scores, scores_from_confusion
from ser.models import make_config, make_feature_extractor, make_model, name_classes
from ser.training.closed_form import SHRINKAGES, Scatter, encoder_features, fit_discriminant, training_features
from ser.training.run import split_of, with_copies

SAMPLING_RATE = 22_050
TRIM_DB = 35
N_MFCC = 30
GRID = {"svc__C": [1, 3, 10, 30], "svc__gamma": ["scale", 0.001, 0.0003]}
C = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of logistic regression
CLASSICAL = """Scores hand-made features on the same folds: statistics of MFCC and a support vector machine.

A clip is trimmed (35 dB below its loudest frame) and described by the mean, the standard deviation and the 10th and
90th percentile over time of 30 MFCC and of their first and second deltas, and by the logarithm of its duration. C and
gamma of the RBF kernel are chosen by cross-validation over the training speakers of each fold. Everything is computed
by librosa and scikit-learn, except the folds and the scores."""
SPEECH = """Compares linear classifiers on a frozen speech encoder, on the validation speakers of some folds.

Options other than --folds and --json are those of the training command, with `--closed_form_classifier`. The features
are those of the model, with altered copies and without: logistic regression (scikit-learn, classes balanced) by C,
linear discriminant analysis by its shrinkage, and with the shrinkage that training chooses by leaving out training
speakers."""


def main() -> None:
    parser, commands = parser_of(__doc__)
    classical = add_command(commands, "classical", measure_classical, CLASSICAL)
    add_ravdess(classical)
    classical.add_argument("--protocol", nargs="+", default=["emobox", "luna-jimenez"])
    classical.add_argument("--num_workers", type=int, default=2)
    speech = add_command(commands, "speech", measure_speech, SPEECH, takes_flags=True)
    speech.add_argument("--folds", type=int, nargs="+", default=[1, 4])
    run(parser)


# --- hand-made features ---


def measure_classical(args: argparse.Namespace) -> dict[str, object]:
    corpus = load_corpus("ravdess", args.data_dir)
    with ProcessPoolExecutor(args.num_workers) as workers:
        features = np.stack(list(workers.map(describe_clip, (clip["path"] for clip in corpus.clips["audio"]))))
    return {protocol: report(corpus, features, protocol) for protocol in args.protocol}


def describe_clip(path: str) -> np.ndarray:
    """Returns the statistics of one clip, `(4 * 3 * N_MFCC + 1,)`."""
    waveform, _ = librosa.effects.trim(read_audio(path, SAMPLING_RATE), top_db=TRIM_DB)
    mfcc = librosa.feature.mfcc(y=waveform, sr=SAMPLING_RATE, n_mfcc=N_MFCC)
    tracks = np.concatenate([mfcc, librosa.feature.delta(mfcc), librosa.feature.delta(mfcc, order=2)])
    statistics = [tracks.mean(1), tracks.std(1), *np.percentile(tracks, (10, 90), axis=1)]
    return np.concatenate([*statistics, [np.log(len(waveform) / SAMPLING_RATE)]])


def report(corpus: Corpus, features: np.ndarray, protocol: str) -> dict[str, object]:
    """Trains and tests every fold; prints UA of each, its mean and standard deviation, and the pooled UA."""
    labels, speakers = np.array(corpus.labels), np.array(corpus.speakers)
    per_fold, tested, predicted = [], [], []
    for fold in range(1, n_folds(corpus, protocol) + 1):
        split = make_split(corpus, protocol, fold)
        training = split.train + split.validation
        machine = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
        search = GridSearchCV(machine, GRID, scoring="balanced_accuracy", cv=GroupKFold(5), n_jobs=1)
        search.fit(features[training], labels[training], groups=speakers[training])
        predictions = search.predict(features[split.test])
        result = scores(labels[split.test], predictions, corpus.label_names, resamples=100)
        per_fold.append(result["UA"])
        tested += split.test
        predicted += predictions.tolist()
        print(f"{split.name}: UA {result['UA']:.3f}, WA {result['WA']:.3f} ({search.best_params_})", flush=True)
    pooled = scores(labels[tested], predicted, corpus.label_names, speakers[tested].tolist())
    low, high = pooled["intervals"]["by_speaker"]["UA"]
    print(
        f"{corpus.name}/{protocol}: UA {np.mean(per_fold):.3f} +- {np.std(per_fold, ddof=1):.3f}, pooled "
        f"{pooled['UA']:.3f} ({low:.3f} to {high:.3f} by speaker), WA pooled {pooled['WA']:.3f}"
    )
    return {"UA_per_fold": per_fold, "pooled": pooled}


# --- a frozen speech encoder ---


def measure_speech(own: argparse.Namespace) -> dict[str, object]:
    model_args, data_args, args = parse_arguments([*own.flags, "--report_to=none"])
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
            for name, predictions in predictions_of(features, labels, speakers, held_out, len(corpus.label_names)):
                counts = confusion_matrix(truth, predictions, len(corpus.label_names))
                found[f"{name}, {kind}"][fold] = float(scores_from_confusion(counts)["UA"])
                print(f"fold {fold}: {name}, {kind}: UA {found[f'{name}, {kind}'][fold]:.3f}", flush=True)
    for name, by_fold in found.items():
        print(f"{name}: UA {np.mean([*by_fold.values()]):.3f} ({', '.join(f'{ua:.3f}' for ua in by_fold.values())})")
    return {name: {str(fold): ua for fold, ua in by_fold.items()} for name, by_fold in found.items()}


def predictions_of(
    features: torch.Tensor, labels: torch.Tensor, speakers: list[int], held_out: torch.Tensor, num_labels: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of each classifier and its predictions for the held-out features."""
    for strength in C:
        machine = LogisticRegression(C=strength, max_iter=500, class_weight="balanced")
        yield f"logistic regression, C {strength:g}", machine.fit(features, labels).predict(held_out)
    center = features.mean(0)
    scatter = Scatter.of(features - center, labels, num_labels)
    for shrinkage in SHRINKAGES:
        weight, bias = scatter.discriminant(shrinkage)
        predictions = ((held_out - center) @ weight.T + bias).argmax(1).numpy()
        yield f"discriminant analysis, shrinkage {shrinkage:g}", predictions
    fitted = fit_discriminant(features, labels, speakers, num_labels)
    predictions = (held_out @ fitted.weight.T + fitted.bias).argmax(1).numpy()
    yield "discriminant analysis, shrinkage chosen in training", predictions


if __name__ == "__main__":
    main()
