"""Scores a checkpoint on recordings that are joined from clips by speakers that were not trained on.

    python -m benchmarks.long_recordings CHECKPOINT RAVDESS [--part validation] [--smooth 1 3 5] [--figure joined.png]
    python -m benchmarks.long_recordings CHECKPOINT CORPUS --dataset_name NAME --clips 1 2 4 8 --smooth

The first table is by length, for recordings of 1, 2, 4 and 8 consecutive clips (`--clips`) of one speaker and one
emotion. It has the UA of the pipeline's prediction, which is the mean over windows if the recording is longer than the
training clips, and that of a single image of the whole recording (`window_s=None`).

The second table is for predictions along recordings (of RAVDESS; left out with an empty `--smooth`). There is one
recording per actor, with two to four clips of every emotion in random order, twice. Clips are trimmed (35 dB below
their loudest frame) and separated by 0.3 s of silence. Each recording is tested with the levels as recorded, and with
equal levels of all clips. The table has the share of time with the correct emotion, the emotion diarization error rate
and the F1 of segments (see ser/inference/references.py) over all actors, for each `--smooth`. The default actors are
those of the checkpoint's test part; `smooth` is chosen on those of `--part validation`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np

from audio_maxmvit import read_audio
from benchmarks.results import add_json, speakers_of, write_results
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.data.corpora import Corpus, load_corpus
from ser.evaluation.metrics import confusion_matrix, scores_from_confusion
from ser.evaluation.plots import envelope, plot_timeline
from ser.inference.references import Segment, diarization_scores, pooled_scores, timeline_segments
from ser.models import load_pipeline

TRIM_DB = 35
PAUSE_S = 0.3
ROUNDS = 2
LEVEL = 0.05  # RMS of every clip if levels are equalised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data_dir", help="folder of the corpus")
    parser.add_argument("--dataset_name", default="ravdess", help="another corpus than ravdess, for --clips")
    parser.add_argument("--actors", type=int, nargs="+", help="default: those of the checkpoint's --part")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--window", type=float, default=3.0)
    parser.add_argument("--hop", type=float, default=1.0)
    parser.add_argument("--clips", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of clips per recording")
    parser.add_argument("--smooth", type=int, nargs="*", default=[1, 3, 5], help="values of smooth to test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", help="file for a plot of the first recording's timeline")
    add_json(parser)
    args = parser.parse_args()
    actors = [f"{actor:02d}" for actor in args.actors] if args.actors else speakers_of(args.checkpoint, args.part)
    classify = load_pipeline(str(args.checkpoint), batch_size=16)
    corpus = load_corpus(args.dataset_name, args.data_dir)
    results: dict[str, object] = {"by_clips": scores_by_clips(classify, corpus, actors, args.clips)}
    if args.smooth:
        results["by_levels_and_smooth"] = scores_along(classify, corpus, actors, args)
    write_results(args.json, results)
    if args.figure:
        plot(
            classify, *join_clips(corpus, actors[0], classify.feature_extractor.sampling_rate, False, args.seed), args
        )


def scores_by_clips(
    classify: MaxMViTAudioClassificationPipeline, corpus: Corpus, speakers: Sequence[str], counts: Sequence[int]
) -> dict[int, dict[str, float]]:
    """
    Measures UA over recordings of one speaker and emotion by their number of clips. Each speaker's clips of an emotion
    are divided, in the order of the corpus, into groups of that number, or one group of all if there are fewer.

    Returns:
        `{clips: {"recordings", "mean_s", "UA", "UA_as_one"}}`: `UA` of the pipeline's prediction, `UA_as_one` of a
        single image.
    """
    rate = classify.feature_extractor.sampling_rate
    groups: dict[tuple[str | None, int], list[np.ndarray]] = {}
    for speaker, label, audio in zip(corpus.speakers, corpus.labels, corpus.clips["audio"], strict=True):
        if speaker in speakers:
            groups.setdefault((speaker, label), []).append(read_audio(audio, rate))
    names = corpus.label_names
    print("| clips | recordings | mean length | UA | UA as one image |\n|---|---|---|---|---|")
    table = {}
    for count in counts:
        recordings, labels = [], []
        for (_, label), clips in groups.items():
            for first in range(0, max(1, len(clips) // count * count), count):
                recordings.append(np.concatenate(clips[first : first + count]))
                labels.append(label)
        row: dict[str, float] = {
            "recordings": len(recordings), "mean_s": sum(map(len, recordings)) / len(recordings) / rate
        }  # fmt: skip
        for name, window_s in {"UA": "auto", "UA_as_one": None}.items():
            predictions = classify(recordings, sampling_rate=rate, window_s=window_s, silence_db=None)
            found = [names.index(rows[0]["label"]) for rows in predictions]
            row[name] = float(scores_from_confusion(confusion_matrix(labels, found, len(names)))["UA"])
        table[count] = row
        print(f"| {count} | {row['recordings']} | {row['mean_s']:.1f} s | {row['UA']:.3f} | {row['UA_as_one']:.3f} |",
              flush=True)  # fmt: skip
    return table


def scores_along(
    classify: MaxMViTAudioClassificationPipeline, corpus: Corpus, actors: Sequence[str], args: argparse.Namespace
) -> dict[str, dict[int, dict[str, float]]]:
    """Returns the scores of timelines, by the levels of the clips and `--smooth`."""
    rate = classify.feature_extractor.sampling_rate
    chance = 1 / len(corpus.label_names)
    print(f"actors {', '.join(actors)}; windows of {args.window:g} s every {args.hop:g} s; chance {chance:.3f}")
    print("| levels | smooth | correct time | EDER | segment F1 |\n|---|---|---|---|---|")
    figures: dict[str, dict[int, dict[str, float]]] = {}
    for equalised in (False, True):
        levels = "equalised" if equalised else "as recorded"
        figures[levels] = {}
        recordings = [join_clips(corpus, actor, rate, equalised, args.seed) for actor in actors]
        for smooth in args.smooth:
            scores = []
            for waveform, reference in recordings:
                rows = classify(waveform, window_s=args.window, hop_s=args.hop, smooth=smooth)
                predicted = timeline_segments(rows)
                scores.append(diarization_scores(reference, predicted, max(len(waveform) / rate, rows[-1]["end"])))
            pooled = pooled_scores(scores)
            figures[levels][smooth] = pooled
            print(f"| {levels} | {smooth} | {pooled['time_right']:.3f} | "
                  f"{pooled['EDER']:.3f} | {pooled['segment_F1']:.3f} |", flush=True)  # fmt: skip
    return figures


def join_clips(corpus: Corpus, actor: str, rate: int, equalised: bool, seed: int) -> tuple[np.ndarray, list[Segment]]:
    """Returns an actor's recording `(T,)` and its reference segments, each an emotion including short pauses."""
    random = np.random.default_rng([seed, int(actor)])
    paths = [audio["path"] for audio in corpus.clips["audio"]]
    own = [index for index, speaker in enumerate(corpus.speakers) if speaker == actor]
    if not own:
        sys.exit(f"error: {corpus.source} holds no clips of actor {actor}.")
    labels = np.array(corpus.labels)
    pause, parts, segments, position = np.zeros(round(PAUSE_S * rate), np.float32), [], [], 0
    for _ in range(ROUNDS):
        for label in random.permutation(len(corpus.label_names)):
            start = position
            for index in random.choice([i for i in own if labels[i] == label], random.integers(2, 5), replace=False):
                waveform, _ = librosa.effects.trim(read_audio(paths[index], rate), top_db=TRIM_DB)
                if equalised:
                    waveform = waveform * np.float32(LEVEL / np.sqrt(np.mean(waveform**2)))
                parts += [waveform, pause]
                position += len(waveform) + len(pause)
            segments.append(Segment(start / rate, (position - len(pause)) / rate, corpus.label_names[label]))
    return np.concatenate(parts), segments


def plot(
    classify: MaxMViTAudioClassificationPipeline,
    waveform: np.ndarray,
    reference: list[Segment],
    args: argparse.Namespace,
) -> None:
    """Plots the timeline of a recording, with the true emotions above it."""
    labels = list(classify.model.config.id2label.values())
    rate = classify.feature_extractor.sampling_rate
    rows = classify(waveform, window_s=args.window, hop_s=args.hop, smooth=(args.smooth or [1])[0])
    step_s = len(waveform) / rate / 1200
    figure = plot_timeline(rows, envelope([waveform], rate, step_s), step_s, labels)
    figure.set_size_inches(12, 4.8)
    wave = figure.axes[0]
    for segment in reference:
        wave.axvline(segment.start, color="black", linewidth=0.5)
        wave.annotate(segment.label, ((segment.start + segment.end) / 2, 1.02), xycoords=("data", "axes fraction"),
                      ha="center", va="bottom", fontsize=7, rotation=30)  # fmt: skip
    figure.savefig(args.figure)
    print(f"wrote {args.figure}")


if __name__ == "__main__":
    main()
