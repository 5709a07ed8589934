"""Emotions along recordings glued of clips by unheard actors: how much of the time is named rightly?

    python -m benchmarks.long_recordings CHECKPOINT RAVDESS [--part validation] [--smooth 1 3 5] [--picture glued.png]

One recording an actor, in which every emotion is spoken for two to four clips on end, in random order, twice. Clips
are trimmed (35 dB below their loudest frame) and follow each other after 0.3 s of silence. Each recording is heard
with the levels as recorded, and again with all clips at one level. Printed, over all actors: the share of time named
rightly, the emotion diarization error rate and the F1 of segments (see ser/diarization.py), for each `--smooth`. The
actors are by default those of the checkpoint's own test part; `smooth` is chosen on those of `--part validation`.
"""

import argparse
import sys
from pathlib import Path

import librosa
import numpy as np

from audio_maxmvit import read_audio
from benchmarks.results import add_json, write_results
from benchmarks.speakers import speakers_of
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.corpora import Corpus, load_corpus
from ser.diarization import Segment, diarization_scores, pooled_scores, timeline_segments
from ser.models import load_pipeline
from ser.timelines import envelope, plot_timeline

TRIM_DB = 35
PAUSE_S = 0.3
ROUNDS = 2
LEVEL = 0.05  # RMS of every clip where levels are equalised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("ravdess")
    parser.add_argument("--actors", type=int, nargs="+", help="default: those of the checkpoint's --part")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--window", type=float, default=3.0)
    parser.add_argument("--hop", type=float, default=1.0)
    parser.add_argument("--smooth", type=int, nargs="+", default=[1, 3, 5], help="each is tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="where to draw the first recording's timeline")
    add_json(parser)
    args = parser.parse_args()
    actors = [f"{actor:02d}" for actor in args.actors] if args.actors else speakers_of(args.checkpoint, args.part)
    classify = load_pipeline(str(args.checkpoint), batch_size=16)
    corpus = load_corpus("ravdess", args.ravdess)
    rate = classify.feature_extractor.sampling_rate
    chance = 1 / len(corpus.label_names)
    print(f"actors {', '.join(actors)}; windows of {args.window:g} s every {args.hop:g} s; chance {chance:.3f}")
    print("| levels | smooth | time named right | EDER | segment F1 |\n|---|---|---|---|---|")
    figures: dict[str, dict[int, dict[str, float]]] = {}
    for equalised in (False, True):
        levels = "equalised" if equalised else "as recorded"
        figures[levels] = {}
        recordings = [glue(corpus, actor, rate, equalised, args.seed) for actor in actors]
        for smooth in args.smooth:
            scores = []
            for waveform, reference in recordings:
                rows = classify(waveform, window_s=args.window, hop_s=args.hop, smooth=smooth)
                answer = timeline_segments(rows)
                scores.append(diarization_scores(reference, answer, max(len(waveform) / rate, rows[-1]["end"])))
            pooled = pooled_scores(scores)
            figures[levels][smooth] = pooled
            print(f"| {levels} | {smooth} | {pooled['time_right']:.3f} | "
                  f"{pooled['EDER']:.3f} | {pooled['segment_F1']:.3f} |", flush=True)  # fmt: skip
    write_results(args.json, {"by_levels_and_smooth": figures})
    if args.picture:
        draw(classify, *glue(corpus, actors[0], rate, False, args.seed), args)


def glue(corpus: Corpus, actor: str, rate: int, equalised: bool, seed: int) -> tuple[np.ndarray, list[Segment]]:
    """One actor's recording `(T,)` and its reference segments, each an emotion with the short pauses in it."""
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


def draw(
    classify: MaxMViTAudioClassificationPipeline,
    waveform: np.ndarray,
    reference: list[Segment],
    args: argparse.Namespace,
) -> None:
    """The timeline of a recording, with the true emotions named above it."""
    labels = list(classify.model.config.id2label.values())
    rate = classify.feature_extractor.sampling_rate
    rows = classify(waveform, window_s=args.window, hop_s=args.hop, smooth=args.smooth[0])
    step_s = len(waveform) / rate / 1200
    figure = plot_timeline(rows, envelope([waveform], rate, step_s), step_s, labels)
    figure.set_size_inches(12, 4.8)
    wave = figure.axes[0]
    for segment in reference:
        wave.axvline(segment.start, color="black", linewidth=0.5)
        wave.annotate(segment.label, ((segment.start + segment.end) / 2, 1.02), xycoords=("data", "axes fraction"),
                      ha="center", va="bottom", fontsize=7, rotation=30)  # fmt: skip
    figure.savefig(args.picture)
    print(f"drawn in {args.picture}")


if __name__ == "__main__":
    main()
