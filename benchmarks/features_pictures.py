"""Draws docs/features.png: one clip's CQT and Mel image per emotion of RAVDESS.

python -m benchmarks.features_pictures ../shared/data/ravdess
"""

import argparse
import os
from pathlib import Path

import librosa
import matplotlib.pyplot as plt
import numpy as np

from audio_maxmvit import read_audio
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.corpora.ravdess import RAVDESS_EMOTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument("--actor", type=int, default=1)
    parser.add_argument("--output", default="docs/features.png")
    args = parser.parse_args()
    extractor = MaxMViTFeatureExtractor()
    figure, axes = plt.subplots(2, 8, figsize=(16, 5.6), sharey="row", layout="constrained")
    for column, emotion in enumerate(RAVDESS_EMOTIONS):
        intensity = 1 if emotion == "neutral" else 2  # RAVDESS has no strong neutral
        name = f"03-01-{column + 1:02}-{intensity:02}-01-01-{args.actor:02}.*"
        (path,) = Path(args.data_dir, f"Actor_{args.actor:02}").glob(name)
        y = read_audio(path, extractor.sampling_rate)
        seconds = len(y) / extractor.sampling_rate
        pair = extractor.extract(y)
        for axis, images in zip(axes[:, column], (pair["cqt_values"], pair["mel_values"]), strict=True):
            drawn = axis.imshow(
                images[0, 0],
                origin="lower",
                aspect="auto",
                extent=(0, seconds, 0, 1),
                interpolation="nearest",
                vmin=0,
                vmax=1,
            )
            axis.set_xticks(range(int(seconds) + 1))
        axes[0, column].set_title(emotion)
        axes[1, column].set_xlabel("seconds")
    # Where a frequency lies in [0, 1] of an image's height: the middle of bin k of n is at (k + 1/2) / n.
    octaves = 32.703 * 2.0 ** np.arange(7)
    axes[0, 0].set_yticks((12 * np.arange(7) + 0.5) / 84, [f"{frequency:.0f}" for frequency in octaves])
    axes[0, 0].set_ylabel("CQT, Hz")
    ticks = np.array([500, 1000, 2000, 4000, 8000, 16_000])
    centres = librosa.mel_frequencies(130, fmin=0, fmax=22_050)[1:-1]
    axes[1, 0].set_yticks((np.interp(ticks, centres, np.arange(128)) + 0.5) / 128, [f"{tick}" for tick in ticks])
    axes[1, 0].set_ylabel("Mel, Hz")
    decibels = figure.colorbar(drawn, ax=axes, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1])
    decibels.set_label("pixel value: the clip's range, at most 80 dB, mapped to 0 to 1")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=100)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
