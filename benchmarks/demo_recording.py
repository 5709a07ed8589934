"""Emotions along recordings glued of the demo corpus's unheard voices: how many windows are named rightly?

    python run_ser.py configs/demo.yaml --training_window 2
    python -m benchmarks.demo_recording out/demo [--window 2 --hop 1]

One recording per test voice of the run, in which each emotion is spoken for all of the voice's clips on end. A window
is named rightly if it bears the emotion that is spoken at its centre; those whose centre lies within a second of a
change are counted apart, since they hold both.
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
    right: dict[str, list[bool]] = {"inside": [], "near a change": []}
    for voice in voices:
        waveform, changes, names = glue(int(voice.rpartition("_")[2]))
        for row in classify({"array": waveform, "sampling_rate": SAMPLING_RATE}):
            centre = (row["start"] + row["end"]) / 2
            spoken = names[np.searchsorted(changes, centre)]
            near = np.abs(np.array(changes) - centre).min() < NEAR_S
            right["near a change" if near else "inside"].append(row["label"] == spoken)
    every = right["inside"] + right["near a change"]
    print(f"voices {', '.join(voices)}; {args.window:g} s every {args.hop:g} s; chance {1 / len(EMOTIONS):.2f}")
    for name, hits in {"all windows": every, **right}.items():
        print(f"{name}: {np.mean(hits):.3f} of {len(hits)} named rightly")
    write_results(
        args.json, {"all": float(np.mean(every)), **{name: float(np.mean(hits)) for name, hits in right.items()}}
    )


def glue(voice: int) -> tuple[np.ndarray, list[float], list[str]]:
    """A recording `(T,)`, the seconds at which its emotion changes, and the emotions in their order."""
    names = list(np.random.default_rng(voice).permutation(EMOTIONS))
    stretches = [np.concatenate([synthesize_clip(name, voice, take) for take in range(CLIPS)]) for name in names]
    changes = np.cumsum([len(stretch) for stretch in stretches[:-1]]) / SAMPLING_RATE
    return np.concatenate(stretches), changes.tolist(), names


if __name__ == "__main__":
    main()
