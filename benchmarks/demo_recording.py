"""Measures the accuracy of windows along recordings that are concatenated from test voices of the demo corpus.

    python run_ser.py configs/demo.yaml --training_window 2
    python -m benchmarks.demo_recording out/demo [--window 2 --hop 1]

There is one recording per test voice of the run, with all clips of each emotion in succession. A window is correct if
it has the emotion at its centre; windows whose centre is within a second of a change are counted separately, since
they contain both emotions.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.results import add_json, write_results
from benchmarks.speakers import speakers_of
from ser.data.corpora.demo import EMOTIONS, SAMPLING_RATE, synthesize_clip
from ser.models import load_pipeline

CLIPS = 5  # of each emotion and voice in the demo corpus
NEAR_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--window", type=float, default=2.0)
    parser.add_argument("--hop", type=float, default=1.0)
    add_json(parser)
    args = parser.parse_args()
    voices = speakers_of(args.checkpoint)
    classify = load_pipeline(str(args.checkpoint), batch_size=16, window_s=args.window, hop_s=args.hop)
    correct: dict[str, list[bool]] = {"inside": [], "near a change": []}
    for voice in voices:
        waveform, changes, names = join_clips(int(voice.rpartition("_")[2]))
        for row in classify({"array": waveform, "sampling_rate": SAMPLING_RATE}):
            centre = (row["start"] + row["end"]) / 2
            emotion = names[np.searchsorted(changes, centre)]
            near = np.abs(np.array(changes) - centre).min() < NEAR_S
            correct["near a change" if near else "inside"].append(row["label"] == emotion)
    every = correct["inside"] + correct["near a change"]
    print(f"voices {', '.join(voices)}; {args.window:g} s every {args.hop:g} s; chance {1 / len(EMOTIONS):.2f}")
    for name, hits in {"all windows": every, **correct}.items():
        print(f"{name}: accuracy {np.mean(hits):.3f} over {len(hits)}")
    write_results(
        args.json, {"all": float(np.mean(every)), **{name: float(np.mean(hits)) for name, hits in correct.items()}}
    )


def join_clips(voice: int) -> tuple[np.ndarray, list[float], list[str]]:
    """Returns a recording `(T,)`, the seconds at which its emotion changes, and the emotions in their order."""
    names = list(np.random.default_rng(voice).permutation(EMOTIONS))
    parts = [np.concatenate([synthesize_clip(name, voice, take) for take in range(CLIPS)]) for name in names]
    changes = np.cumsum([len(part) for part in parts[:-1]]) / SAMPLING_RATE
    return np.concatenate(parts), changes.tolist(), names


if __name__ == "__main__":
    main()
