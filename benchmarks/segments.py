"""
Compares the time to classify an hour by its 1,000 speaker turns with the time to classify it by windows.

    python -m benchmarks.segments [--model MODEL] [--minutes 60] [--turns 1000] [--window 3] [--json FILE]

The hour is synthetic. The turns last from 0.5 to 6 s at random, and are scaled and spread so that they cover the whole
hour; the windows do not overlap, so that both read every second once. Both are timed in turn, by the clock and by the
CPU seconds of all threads, which other processes on the machine do not change.
"""

import argparse
import time

import numpy as np

from benchmarks.results import add_json, write_results
from ser.data.corpora.demo import SAMPLING_RATE, synthesize_clip
from ser.models import load_pipeline

EMOTIONS = ("angry", "sad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the checkpoint that comes with the code")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--window", type=float, default=3.0)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--device")
    add_json(parser)
    args = parser.parse_args()
    classify = load_pipeline(args.model, args.device, batch_size=args.batch_size)
    sound = speech(60 * args.minutes)
    recording = {"array": sound, "sampling_rate": SAMPLING_RATE}
    turns = spread_turns(args.turns, 60 * args.minutes)
    classify(sound[: 10 * SAMPLING_RATE], sampling_rate=SAMPLING_RATE, window_s=args.window)
    took: dict[str, float] = {}
    for name, options in {"windows": {"window_s": args.window}, "segments": {"segments": turns}}.items():
        started, used = time.perf_counter(), time.process_time()
        rows = classify(recording, **options)
        took[f"{name}_s"], took[f"{name}_cpu_s"] = time.perf_counter() - started, time.process_time() - used
        print(f"{args.minutes:g} minutes as {len(rows):,} {name}: {took[f'{name}_s']:.1f} s, "
              f"{took[f'{name}_cpu_s']:.1f} CPU seconds", flush=True)  # fmt: skip
    ratios = {
        name: took[f"segments{unit}"] / took[f"windows{unit}"]
        for name, unit in (("ratio", "_s"), ("cpu_ratio", "_cpu_s"))
    }
    print(f"ratio: {ratios['ratio']:.2f}, of CPU seconds {ratios['cpu_ratio']:.2f}")
    write_results(args.json, {**took, "turns": len(turns), **ratios})


def speech(seconds: float) -> np.ndarray:
    """Returns a recording `(T,)` of the demo's voices, which are repeated."""
    clips = [synthesize_clip(EMOTIONS[voice % 2], voice, 0) for voice in range(40)]
    return np.resize(np.concatenate(clips), round(seconds * SAMPLING_RATE)).astype(np.float32)


def spread_turns(count: int, seconds: float) -> list[tuple[float, float, str]]:
    """Returns consecutive turns of two speakers that cover `seconds`."""
    lengths = np.random.default_rng(0).uniform(0.5, 6.0, count)
    edges = np.concatenate([[0.0], np.cumsum(lengths)]) * (seconds / lengths.sum())
    return [
        (float(start), float(end), "ab"[index % 2])
        for index, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]


if __name__ == "__main__":
    main()
