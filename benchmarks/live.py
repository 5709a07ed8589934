"""Compares answers while a recording arrives with those along all of it, and measures their memory and CPU time.

    python -m benchmarks.live [RAVDESS] [--model MODEL] [--minutes 2 10] [--window 3] [--hop 1]

The recordings are RAVDESS clips of all actors in random order, which arrive in chunks of random length (up to 2 s). Of
each recording, the command prints by how much the probabilities differ from those of a call for all of it, the CPU
seconds of one thread for a second of sound, and the resident memory of the process after the first minute and at most
after that, when the stream alone is in memory.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from audio_maxmvit import read_audio
from benchmarks.results import add_json, add_ravdess, write_results
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.models import load_pipeline

RATE = 48_000
LONGEST_CHUNK_S = 2.0
WARM_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_ravdess(parser)
    parser.add_argument("--model", help="default: the checkpoint that comes with the code")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0])
    parser.add_argument("--window", type=float, default=3.0)
    parser.add_argument("--hop", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    add_json(parser)
    args = parser.parse_args()
    clips = sorted(Path(args.data_dir or "").glob("Actor_*/*"))
    if not args.data_dir or not clips:
        sys.exit("error: name the folder of RAVDESS, or set SER_RAVDESS_DIR")
    torch.set_num_threads(1)
    classify = load_pipeline(args.model, "cpu")
    figures = {}
    for minutes in args.minutes:
        found = measure(classify, clips, 60 * minutes, args.window, args.hop, args.seed)
        figures[f"{minutes:g} minutes"] = found
        print(f"{minutes:g} minutes, {found['windows']:,} windows of {args.window:g} s every {args.hop:g} s: "
              f"probabilities differ by at most {found['difference']:.1e}, {found['other_labels']} labels differ; "
              f"{found['cpu_s_per_s']:.3f} CPU seconds for a second of sound; {found['rss_first_mib']:.0f} MiB after "
              f"the first minute, at most {found['rss_later_mib']:.0f} MiB later", flush=True)  # fmt: skip
    write_results(args.json, figures)


def measure(
    classify: MaxMViTAudioClassificationPipeline,
    clips: Sequence[Path],
    seconds: float,
    window_s: float,
    hop_s: float,
    seed: int,
) -> dict[str, float]:
    """Streams a recording, then compares its rows with those of a call for all of it."""
    process, memory, rows = psutil.Process(), [], []
    used = time.process_time()
    for row in classify.stream(chunks(clips, seconds, seed), RATE, window_s, hop_s):
        memory.append((row["end"], process.memory_info().rss / 2**20))
        rows.append(row)
    used = time.process_time() - used
    first = [mib for end, mib in memory if end <= min(WARM_S, seconds / 2)]
    later = [mib for _, mib in memory[len(first) :]]
    whole = {"array": np.concatenate(list(chunks(clips, seconds, seed))), "sampling_rate": RATE}
    expected = classify(whole, window_s=window_s, hop_s=hop_s)
    assert [row["start"] for row in rows] == [row["start"] for row in expected]
    differences = [
        np.abs(np.subtract(list(row["scores"].values()), list(other["scores"].values()))).max(initial=0)
        for row, other in zip(rows, expected, strict=True)
    ]
    return {
        "windows": len(rows),
        "difference": float(max(differences)),
        "other_labels": sum(row["label"] != other["label"] for row, other in zip(rows, expected, strict=True)),
        "cpu_s_per_s": used / seconds,
        "rss_first_mib": first[-1],
        "rss_later_mib": max(later),
    }


def chunks(clips: Sequence[Path], seconds: float, seed: int) -> Iterator[np.ndarray]:
    """Yields a recording of `seconds`, `(T,)` at 48 kHz, in chunks of random length, and reads a clip at a time."""
    random, left, kept = np.random.default_rng(seed), round(seconds * RATE), np.zeros(0, np.float32)
    while left:
        length = min(left, int(random.integers(1, round(LONGEST_CHUNK_S * RATE))))
        while len(kept) < length:
            kept = np.concatenate([kept, read_audio(clips[int(random.integers(len(clips)))], RATE)])
        yield kept[:length]
        kept, left = kept[length:], left - length


if __name__ == "__main__":
    main()
