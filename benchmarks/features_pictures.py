"""Plots docs/features.png: an angry and a calm clip of one RAVDESS speaker with `level="clip"` and `"full_scale"`,
whole and trimmed; only with `"full_scale"` do they differ by their loudness.

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

CLIPS = {"angry": "03-01-05-02-01-01", "calm": "03-01-02-01-01-01"}
TRIM_DB = 35.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument("--actor", type=int, default=1)
    parser.add_argument("--output", default="docs/features.png")
    args = parser.parse_args()
    figure, axes = plt.subplots(2, 8, figsize=(16, 5.8), sharey="row", layout="constrained")
    column = 0
    for emotion, name in CLIPS.items():
        (path,) = Path(args.data_dir, f"Actor_{args.actor:02}").glob(f"{name}-{args.actor:02}.*")
        for level in ("clip", "full_scale"):
            for trim_db in (None, TRIM_DB):
                extractor = MaxMViTFeatureExtractor(level=level, trim_db=trim_db)
                (clip,) = extractor.spectrograms(read_audio(path, extractor.sampling_rate))
                shown = extractor.trim(clip)
                seconds = (shown["mel"].shape[-1] - 1) * extractor.mel_hop_length / extractor.sampling_rate
                for axis, images in zip(axes[:, column], extractor.images([clip]).values(), strict=True):
                    extent = (0, seconds, 0, 1)
                    drawn = axis.imshow(images[0, 0], "viridis", aspect="auto", extent=extent, origin="lower",
                                        interpolation="nearest", vmin=0, vmax=1)  # fmt: skip
                    axis.set_xticks(range(int(seconds) + 1))
                trimmed = "whole" if trim_db is None else f"trim_db={trim_db:.0f}"
                axes[0, column].set_title(f'{emotion}: level="{level}",\n{trimmed}', fontsize=9)
                axes[1, column].set_xlabel("seconds")
                column += 1
    # The height of a frequency in an image, from 0 to 1: the middle of bin k of n is at (k + 1/2) / n.
    octaves = 32.703 * 2.0 ** np.arange(7)
    axes[0, 0].set_yticks((12 * np.arange(7) + 0.5) / 84, [f"{frequency:.0f}" for frequency in octaves])
    axes[0, 0].set_ylabel("CQT, Hz")
    ticks = np.array([500, 1000, 2000, 4000, 8000, 16_000])
    centres = librosa.mel_frequencies(130, fmin=0, fmax=22_050)[1:-1]
    axes[1, 0].set_yticks((np.interp(ticks, centres, np.arange(128)) + 0.5) / 128, [f"{tick}" for tick in ticks])
    axes[1, 0].set_ylabel("Mel, Hz")
    figure.colorbar(drawn, ax=axes, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1]).set_label(
        "pixel: 80 dB up to the clip's maximum, or -60 to 40 dB"
    )
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=100)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
