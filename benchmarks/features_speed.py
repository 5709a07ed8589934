"""Times the computation of images by this extractor, by librosa + cv2 with the paper's settings, and nnAudio's CQT.

    python -m benchmarks.features_speed ../shared/data/ravdess

They take turns on the same clips in one process; ratios are those of the medians. They may use one thread, then two
(the extractor uses one). Then follow an hour of audio and, if there is a GPU, clips per second on it.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import librosa
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from audio_maxmvit import read_audio
from benchmarks.results import add_json, write_results
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from spectrograms_maxmvit import cqt_magnitude

RATE = 44_100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument("--clips", type=int, default=24, help="evenly chosen")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    add_json(parser)
    args = parser.parse_args()
    paths = sorted(Path(args.data_dir).glob("Actor_*/*"))
    waveforms = [read_audio(path, RATE) for path in paths[:: max(1, len(paths) // args.clips)]]
    seconds = np.mean([len(y) / RATE for y in waveforms])
    print(f"{len(waveforms)} clips of {seconds:.1f} s on average, {args.rounds} rounds; milliseconds per clip")
    extractor = MaxMViTFeatureExtractor()
    figures: dict[str, object] = {"clips": len(waveforms), "mean_clip_s": seconds}
    for threads in args.threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        with threadpool_limits(threads):
            images = compare(waveforms, args.rounds, {"torch": extractor.extract, "librosa + cv2": reference})
            cqts = {"torch": own_cqt, "librosa": lambda y: np.abs(librosa.cqt(y, sr=RATE)), **nnaudio_cqt()}
            report(f"waveform to both images, {threads} thread(s)", images)
            alone = compare(waveforms, args.rounds, cqts)
            report(f"CQT magnitude alone, {threads} thread(s)", alone)
        figures[f"{threads}_threads"] = {"images_ms": images, "cqt_ms": alone}
    figures |= long_audio(extractor, waveforms)
    if torch.cuda.is_available():
        figures |= gpu(extractor, [read_audio(path, RATE) for path in paths[:256]])
    else:
        print("no GPU: its clips per second were not measured")
    write_results(args.json, figures)


def reference(y: np.ndarray) -> list[np.ndarray]:
    """Computes the paper's images in [0, 1] by librosa and OpenCV."""
    cqt = librosa.amplitude_to_db(np.abs(librosa.cqt(y, sr=RATE)), ref=np.max)
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=4096, hop_length=256, n_mels=128)
    pair = cqt, librosa.power_to_db(mel, ref=np.max)
    return [cv2.resize((db - db.min()) / (db.max() - db.min()), (244, 244)) for db in pair]


def own_cqt(y: np.ndarray) -> torch.Tensor:
    return cqt_magnitude(torch.from_numpy(y)[None])


def nnaudio_cqt() -> dict[str, Callable]:
    try:
        from nnAudio.features.cqt import CQT1992v2, CQT2010v2
    except ImportError:
        print("nnAudio is not installed: left out")
        return {}
    layers = {
        f"nnAudio {kind.__name__}": kind(sr=RATE, hop_length=512, verbose=False) for kind in (CQT1992v2, CQT2010v2)
    }

    def call(layer: torch.nn.Module) -> Callable:
        return torch.no_grad()(lambda y: layer(torch.from_numpy(y)[None]))

    return {name: call(layer) for name, layer in layers.items()}


def compare(waveforms: list[np.ndarray], rounds: int, sides: dict[str, Callable]) -> dict[str, float]:
    """Returns the median milliseconds per clip of each side; the sides take turns clip by clip."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for y in waveforms:  # fills every cache
        for side in sides.values():
            side(y)
    for _ in range(rounds):
        for y in waveforms:
            for name, side in sides.items():
                start = time.perf_counter()
                side(y)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def report(title: str, medians: dict[str, float]) -> None:
    print(f"\n{title}")
    own = medians["torch"]
    for name, value in medians.items():
        print(f"{name:20} {value:8.2f} ms {value / own:8.2f} x")


def long_audio(extractor: MaxMViTFeatureExtractor, waveforms: list[np.ndarray]) -> dict[str, float]:
    speech = np.concatenate(waveforms)
    hour = np.resize(speech, 3600 * RATE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    extractor.extract(hour)
    elapsed = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"\none hour of audio: {elapsed:.1f} s, {grown:.2f} GiB above the waveform's {hour.nbytes / 2**30:.2f} GiB")
    return {"hour_s": elapsed, "hour_grown_gib": grown}


def gpu(extractor: MaxMViTFeatureExtractor, waveforms: list[np.ndarray]) -> dict[str, float]:
    """Measures clips per second of a batch from host memory and from GPU memory, and of one CPU core."""
    torch.set_num_threads(1)
    one_core = 1e3 / compare(waveforms[:32], 3, {"torch": extractor.extract})["torch"]
    resident = [torch.from_numpy(y).cuda() for y in waveforms]
    print(f"\n{torch.cuda.get_device_name()}: one CPU core {one_core:.0f} clips per second")
    rates = {"one core, clips per second": one_core}
    for title, batch in (("from host memory", waveforms), ("from GPU memory", resident)):
        times = []
        for _ in range(12):
            torch.cuda.synchronize()
            start = time.perf_counter()
            extractor.extract(batch, device="cuda")
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        rate = len(batch) / np.median(times[2:])
        rates[f"{title}, clips per second"] = rate
        print(f"{title}: {rate:.0f} clips per second, {rate / one_core:.0f} x")
    return rates


if __name__ == "__main__":
    main()
