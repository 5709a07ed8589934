"""Scores a baseline of hand-made features on the same folds: statistics of MFCC and a support vector machine.

    python -m benchmarks.classical_baseline RAVDESS --protocol emobox luna-jimenez

A clip is trimmed (35 dB below its loudest frame) and described by the mean, the standard deviation and the 10th and
90th percentile over time of 30 MFCC and of their first and second deltas, and by the logarithm of its duration. C and
gamma of the RBF kernel are chosen by cross-validation over the training speakers of each fold. Everything is computed
by librosa and scikit-learn, except the folds and the scores.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor

import librosa
import numpy as np
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from audio_maxmvit import read_audio
from benchmarks.results import add_json, write_results
from ser.data.corpora import Corpus, load_corpus
from ser.data.protocols import make_split, n_folds
from ser.evaluation.metrics import scores

SAMPLING_RATE = 22_050
TRIM_DB = 35
N_MFCC = 30
GRID = {"svc__C": [1, 3, 10, 30], "svc__gamma": ["scale", 0.001, 0.0003]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument("--protocol", nargs="+", default=["emobox", "luna-jimenez"])
    parser.add_argument("--num_workers", type=int, default=2)
    add_json(parser)
    args = parser.parse_args()
    corpus = load_corpus("ravdess", args.data_dir)
    with ProcessPoolExecutor(args.num_workers) as workers:
        features = np.stack(list(workers.map(describe_clip, (clip["path"] for clip in corpus.clips["audio"]))))
    write_results(args.json, {protocol: report(corpus, features, protocol) for protocol in args.protocol})


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
    per_fold, tested, answered = [], [], []
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
        answered += predictions.tolist()
        print(f"{split.name}: UA {result['UA']:.3f}, WA {result['WA']:.3f} ({search.best_params_})", flush=True)
    pooled = scores(labels[tested], answered, corpus.label_names, speakers[tested].tolist())
    low, high = pooled["intervals"]["by_speaker"]["UA"]
    print(
        f"{corpus.name}/{protocol}: UA {np.mean(per_fold):.3f} +- {np.std(per_fold, ddof=1):.3f}, pooled "
        f"{pooled['UA']:.3f} ({low:.3f} to {high:.3f} by speaker), WA pooled {pooled['WA']:.3f}"
    )
    return {"UA_per_fold": per_fold, "pooled": pooled}


if __name__ == "__main__":
    main()
