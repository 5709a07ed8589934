"""
Tests the pipeline on an hour of RAVDESS whose first half is angry and whose second half is calm: detection of the
boundary, and memory.

    python -m benchmarks.pipeline_long_recording CHECKPOINT RAVDESS_FOLDER [--minutes 60] [--window 3 --hop 3]
        [--actors 1 11 20 21] [--picture timeline.png]

docs/timeline.png is the plot of `--window 3 --hop 1`. The default actors are those of the checkpoint's test part;
their clips are repeated in random order. The command prints the peak memory of the process for a tenth of the
recording and for all of it, the boundary according to the scores, and the time of the front end with and without
cutting windows out of spectrograms.
"""

import argparse
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

import pipeline_maxmvit
from audio_maxmvit import read_audio, stream_audio
from benchmarks.results import add_json, write_results
from benchmarks.speakers import speakers_of
from pipeline_maxmvit import SILENCE, MaxMViTAudioClassificationPipeline
from ser.evaluation.plots import clock, envelope, plot_timeline
from ser.models import load_pipeline

RATE = 48_000
CODES = {"angry": "05", "calm": "02"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("ravdess", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--window", type=float, default=3.0)
    parser.add_argument("--hop", type=float, default=3.0)
    parser.add_argument("--smooth", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--actors", type=int, nargs="+", help="default: those of the checkpoint's test part")
    parser.add_argument("--picture", default="timeline.png")
    add_json(parser)
    args = parser.parse_args()
    args.actors = [f"{actor:02d}" for actor in args.actors or ()] or speakers_of(args.checkpoint)
    classify = load_pipeline(
        str(args.checkpoint), batch_size=args.batch_size, window_s=args.window, hop_s=args.hop, smooth=args.smooth
    )
    labels = list(classify.model.config.id2label.values())
    if unknown := sorted(CODES.keys() - labels):
        sys.exit(f"error: {args.checkpoint} has the classes {', '.join(labels)}, but not {' or '.join(unknown)}.")
    lengths = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (args.minutes / 10, args.minutes):
            path = Path(folder) / "recording.flac"
            write_recording(path, minutes, args)
            before, start = peak_mib(), time.perf_counter()
            rows = classify(path)
            took, size = time.perf_counter() - start, path.stat().st_size / 2**20
            lengths.append({"minutes": minutes, "windows": len(rows), "took_s": took, "peak_mib": peak_mib()})
            print(f"{minutes:g} minutes, {size:.0f} MiB of flac: {len(rows)} windows in {took:.0f} s, "
                  f"peak memory {before:.0f} -> {peak_mib():.0f} MiB")  # fmt: skip
        rate = classify.feature_extractor.sampling_rate
        print(f"(the decoded recording alone would be {60 * args.minutes * rate * 4 / 2**20:.0f} MiB)")
        step_s = 60 * args.minutes / 2000
        shape = envelope(stream_audio(path, rate), rate, step_s)
        front_end = report_front_end(classify, path, args)
    plot_timeline(rows, shape, step_s, labels).savefig(args.picture)
    write_results(
        args.json, {"recordings": lengths, "front_end_s": front_end, **report_border(rows, args.minutes * 30)}
    )
    print(f"wrote {args.picture}")


def report_front_end(
    classify: MaxMViTAudioClassificationPipeline, path: Path, args: argparse.Namespace
) -> dict[str, float]:
    """Times the computation of images of 3 s windows every 1 s from a file: from the waveform of each window, and cut
    out of spectrograms that are computed once, as the pipeline does if windows overlap."""
    seconds, shortest = {}, pipeline_maxmvit.SHORTEST_CUT_S
    extractor = classify.feature_extractor
    for name, threshold in {"windows of waveform": math.inf, "windows of spectrogram": shortest}.items():
        pipeline_maxmvit.SHORTEST_CUT_S = threshold
        started = time.perf_counter()
        for window in classify.preprocess(path, window_s=3.0, hop_s=1.0):
            if isinstance(sound := window["sound"], dict):
                extractor.images([sound])
            elif sound is not None:
                extractor.extract(sound)
        seconds[name] = time.perf_counter() - started
        print(f"front end, {args.minutes:g} minutes, 3 s every 1 s as {name}: {seconds[name]:.1f} s")
    pipeline_maxmvit.SHORTEST_CUT_S = shortest
    print(f"ratio: {seconds['windows of waveform'] / seconds['windows of spectrogram']:.2f}")
    return seconds


def write_recording(path: Path, minutes: float, args: argparse.Namespace) -> None:
    """Writes half of `minutes` of angry clips, then as much of calm clips, piece by piece."""
    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for code in CODES.values():
            clips = [clip for actor in args.actors for clip in args.ravdess.glob(f"Actor_{actor}/03-01-{code}-*")]
            if not clips:
                sys.exit(
                    f"{args.ravdess} holds no clips Actor_NN/03-01-{code}-* of the actors {', '.join(args.actors)}"
                )
            left = round(minutes * 30 * RATE)
            while left:
                waveform = read_audio(random.choice(sorted(clips)), RATE)[:left]
                file.write(waveform)
                left -= len(waveform)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report_border(rows: list[dict], border_s: float) -> dict[str, float]:
    scored = [row for row in rows if row["label"] != SILENCE]
    centres = np.array([(row["start"] + row["end"]) / 2 for row in scored])
    angry, calm = (np.array([row["scores"][label] for row in scored]) for label in CODES)
    figures = {"border_s": border_s}
    for name, half in (("angry", centres < border_s), ("calm", centres >= border_s)):
        rightly = np.mean((angry > calm)[half] == (name == "angry"))
        named = np.mean([row["label"] == name for row in np.array(scored, dtype=object)[half]])
        figures |= {f"{name}_half_rightly": float(rightly), f"{name}_half_named": float(named)}
        print(f"{name} half: {100 * rightly:.1f} % of windows nearer to {name} than to the other, "
              f"{100 * named:.1f} % named {name}")  # fmt: skip
    evidence = np.log(angry + 1e-6) - np.log(calm + 1e-6)
    before = np.arange(1, len(evidence))  # windows before each possible boundary
    sums = evidence.cumsum()[:-1]
    apart = sums / before - (evidence.sum() - sums) / (len(evidence) - before)
    best = int(np.argmax(before * (len(evidence) - before) * apart**2))  # the step that fits the evidence best
    found = (centres[best] + centres[best + 1]) / 2
    print(f"the boundary is at {clock(border_s)}; according to the scores it is at {clock(found)}")
    return figures | {"border_found_s": float(found)}


if __name__ == "__main__":
    main()
