"""Measures the accuracy of the images: the CQT against its definition in float64, both images against librosa.

    python -m benchmarks.features_accuracy ../shared/data/ravdess

Speech of 0.1 s to 60 s is cut or joined from RAVDESS clips. The definition is evaluated directly, with one inner
product of the clip and librosa's wavelet for every bin and frame.
"""

import argparse
import os
import warnings
from pathlib import Path

import librosa
import numpy as np
import torch

from audio_maxmvit import read_audio
from benchmarks.results import add_json, write_results
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from spectrograms_maxmvit import C1, cqt_magnitude, decibels

RATE = 44_100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument("--clips", type=int, default=144, help="clips for the comparison of images, evenly chosen")
    add_json(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "n_fft=.* is too large")  # librosa on clips of 0.1 s
    paths = sorted(Path(args.data_dir).glob("Actor_*/*"))
    worst = against_definition(paths)
    images = against_librosa(paths[:: max(1, len(paths) // args.clips)])
    write_results(args.json, {"cqt_worst_relative_rms": worst, **images})


def against_definition(paths: list[Path]) -> float:
    speech = np.concatenate([read_audio(path, RATE) for path in paths[::60]])
    print("relative RMS error of the CQT magnitude against a direct float64 evaluation")
    print(f"{'seconds':>8} {'torch':>10} {'librosa':>10}")
    worst = 0.0
    for seconds in (0.1, 0.3, 1, 3, 10, 60):
        clips = 1 if seconds > 3 else 4  # different parts of the speech
        for start in RATE * np.arange(1, 1 + clips):
            y = speech[start : start + round(seconds * RATE)]
            truth = cqt_by_definition(y)
            own = relative_rms(cqt_magnitude(torch.from_numpy(y)[None])[0].numpy(), truth)
            other = relative_rms(np.abs(librosa.cqt(y, sr=RATE)), truth)
            worst = max(worst, own)
            print(f"{seconds:8} {own:10.1e} {other:10.1e}")
    print(f"worst: {worst:.1e} (wanted: at most 1e-4)\n")
    return worst


def cqt_by_definition(y: np.ndarray, hop_length: int = 512) -> np.ndarray:
    """(84, 1 + T // hop_length): |sum_n y[t hop_length + n] conj(wavelet_k[n])| sqrt(length_k), zeros around y."""
    frequencies = librosa.cqt_frequencies(84, fmin=C1)
    wavelets, lengths = librosa.filters.wavelet(freqs=frequencies, sr=RATE, norm=1, dtype=np.complex128)
    size = wavelets.shape[1]
    around = np.lib.stride_tricks.sliding_window_view(np.pad(y.astype(np.float64), size // 2), size)[::hop_length]
    wavelets = wavelets.conj().T * np.sqrt(lengths)
    return np.concatenate([np.abs(around[t : t + 128] @ wavelets) for t in range(0, len(around), 128)]).T


def relative_rms(value: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


def against_librosa(paths: list[Path]) -> dict[str, float]:
    fast, reference = MaxMViTFeatureExtractor(), MaxMViTFeatureExtractor(backend="librosa")
    differences = []
    for path in paths:
        y = read_audio(path, RATE)
        own, other = fast.extract(y), reference.extract(y)
        differences.append([(own[name] - other[name]).abs().mean() for name in ("cqt_values", "mel_values")])
    cqt, mel = np.array(differences).T
    print(f"mean absolute difference per clip from the librosa back end, {len(paths)} clips: median, worst (wanted)")
    print(f"CQT images: {np.median(cqt):.1e} {cqt.max():.1e} (0.003), {np.mean(cqt <= 0.003):.2%} of the clips within")
    print(f"Mel images: {np.median(mel):.1e} {mel.max():.1e} (1e-5)")
    y = read_audio(paths[cqt.argmax()], RATE)
    (clip,) = fast.spectrograms(y)
    clip["cqt"] = decibels(torch.from_numpy(cqt_by_definition(y) ** 2))
    truth = fast.images([clip])["cqt_values"]
    own, other = ((extractor.extract(y)["cqt_values"] - truth).abs().mean() for extractor in (fast, reference))
    print(f"the worst one, {paths[cqt.argmax()].name}, against the image of the float64 definition: ", end="")
    print(f"torch {own:.1e}, librosa {other:.1e}")
    return {
        "clips": len(paths),
        "cqt_image_median": np.median(cqt), "cqt_image_worst": cqt.max(),
        "mel_image_median": np.median(mel), "mel_image_worst": mel.max(),
        "worst_cqt_image_against_definition": float(own), "librosas_against_definition": float(other),
    }  # fmt: skip


if __name__ == "__main__":
    main()
