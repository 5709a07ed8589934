"""Images: their accuracy and speed, the extraction of a corpus, and a plot of them.

python -m benchmarks.features accuracy RAVDESS     # against the definition of the CQT, and against librosa
python -m benchmarks.features speed RAVDESS        # against librosa and nnAudio, clip by clip in turn
python -m benchmarks.features corpus RAVDESS       # with an empty cache, and the second start with a full one
python -m benchmarks.features scale RAVDESS --hours 400 --cores 2 64 512      # projected to a large corpus
python -m benchmarks.features images RAVDESS       # draws docs/features.png
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import datasets
import librosa
import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from datasets import Audio, Dataset
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader

from audio_maxmvit import read_audio
from benchmarks.results import add_command, add_ravdess, parser_of, run
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.data.batches import PairCollator
from ser.data.features import extract_features
from spectrograms_maxmvit import C1, cqt_magnitude, decibels

RATE = 44_100
PROCESSES = (1, 2)
GPU_BATCH = 32
CLIPS = {"angry": "03-01-05-02-01-01", "calm": "03-01-02-01-01-01"}
TRIM_DB = 35.0
ACCURACY = """Compares the CQT with its definition in float64, and both images with those of librosa.

Speech of 0.1 s to 60 s is cut or joined from RAVDESS clips. The definition is evaluated directly, with one inner
product of the clip and librosa's wavelet for every bin and frame."""
SPEED = """Times the images of this extractor and of librosa + cv2 with the paper's settings, and the CQT of nnAudio.

They take turns on the same clips in one process; ratios are those of the medians. They may use one thread, then two
(the extractor uses one). Then follow an hour of audio and, if there is a GPU, clips per second on it."""
CORPUS = """Times the extraction of RAVDESS with an empty cache, and a second start up to its first batch.

The second start is a new process, which counts the audio files that it opens."""
SCALE = """Measures the extraction of features, and projects its time to a large corpus and more cores.

The command measures the extraction of clips from files to cached spectrograms, by 1 and by 2 processes of one thread
each and, if there is a GPU, the spectrograms of decoded waveforms on it. It prints wall-clock time and CPU time; other
work on the machine increases the first, but hardly the second. The projection is from the CPU time of 2 processes, and
assumes that:

- time is proportional to the seconds of speech (longer clips need no more time per second);
- the cores are free, are not hyperthreads, and slow each other down no more than two cores do here; the disk is as
  fast as printed beside each number (for files with the measured bit rate);
- there is one process per core, and starting them and finding missing clips takes no time.

Figures for more cores than this machine has are projections, not measurements."""
IMAGES = """Plots an angry and a calm clip of one speaker with level="clip" and "full_scale", whole and trimmed.

Only with "full_scale" do they differ by their loudness."""


def main() -> None:
    parser, commands = parser_of(__doc__)
    accuracy = add_command(commands, "accuracy", measure_accuracy, ACCURACY)
    accuracy.add_argument("--clips", type=int, default=144, help="clips for the comparison of images, evenly chosen")
    speed = add_command(commands, "speed", measure_speed, SPEED)
    speed.add_argument("--clips", type=int, default=24, help="evenly chosen")
    speed.add_argument("--rounds", type=int, default=5)
    speed.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    corpus = add_command(commands, "corpus", measure_corpus, CORPUS)
    corpus.add_argument("--clips", type=int, help="number of clips, evenly spread over the corpus (default: all)")
    corpus.add_argument("--num_workers", type=int, default=2)
    corpus.add_argument("--cache_dir", help="an empty folder; a temporary one by default")
    corpus.add_argument("--second_start", action="store_true", help=argparse.SUPPRESS)
    scale = add_command(commands, "scale", measure_scale, SCALE)
    scale.add_argument(
        "--clips", type=int, default=400, help="measured clips, evenly spread over the corpus (default 400)"
    )
    scale.add_argument("--hours", type=float, default=400, help="hours of speech to project to (default 400)")
    scale.add_argument("--cores", type=int, nargs="+", default=[2, 64, 512])
    scale.add_argument("--rounds", type=int, default=3, help="measurements, of which the median is taken (default 3)")
    images = add_command(commands, "images", plot_images, IMAGES)
    images.add_argument("--actor", type=int, default=1)
    images.add_argument("--output", default="docs/features.png")
    for each in (accuracy, speed, corpus, scale, images):
        add_ravdess(each)
    run(parser)


# --- accuracy ---


def measure_accuracy(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "n_fft=.* is too large")  # librosa on clips of 0.1 s
    paths = sorted(Path(args.data_dir).glob("Actor_*/*"))
    worst = against_definition(paths)
    images = against_librosa(paths[:: max(1, len(paths) // args.clips)])
    return {"cqt_worst_relative_rms": worst, **images}


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
    print(f"worst: {worst:.1e} (target: at most 1e-4)\n")
    return worst


def cqt_by_definition(y: np.ndarray, hop_length: int = 512) -> np.ndarray:
    """Returns |sum_n y[t hop_length + n] conj(wavelet_k[n])| sqrt(length_k), `(84, 1 + T // hop_length)`, with zeros
    around y."""
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
    print(f"mean absolute difference per clip from the librosa back end, {len(paths)} clips: median, worst (target)")
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


# --- speed ---


def measure_speed(args: argparse.Namespace) -> dict[str, object]:
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
    return figures


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


# --- a corpus ---


def measure_corpus(args: argparse.Namespace) -> dict[str, object]:
    if args.second_start:
        return second_start(args)
    with tempfile.TemporaryDirectory() as folder:
        args.cache_dir = args.cache_dir or folder
        start = time.perf_counter()
        features = extracted(args)
        elapsed = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(args.cache_dir).rglob("*") if path.is_file())
        print(f"first start: {len(features)} clips in {elapsed:.1f} s, {size / 2**20:.0f} MiB on disk", flush=True)
        second = Path(folder) / "second.json"
        again = [args.data_dir, "--second_start", "--cache_dir", args.cache_dir, "--json", str(second)]
        again += ["--num_workers", str(args.num_workers), *(["--clips", str(args.clips)] if args.clips else [])]
        subprocess.run([sys.executable, "-m", "benchmarks.features", "corpus", *again], check=True)
        first = {"clips": len(features), "first_start_s": elapsed, "disk_mib": size / 2**20}
        return first | json.loads(second.read_text())["figures"]


def extracted(args: argparse.Namespace) -> Dataset:
    paths = sorted(map(str, Path(args.data_dir).glob("Actor_*/*")))
    paths = paths[:: max(1, len(paths) // args.clips)] if args.clips else paths
    labels = [int(Path(path).name.split("-")[2]) - 1 for path in paths]
    clips = Dataset.from_dict({"file": [Path(path).name for path in paths], "audio": paths, "label": labels})
    clips = clips.cast_column("audio", Audio(decode=False))
    return extract_features(clips, MaxMViTFeatureExtractor(), num_workers=args.num_workers, cache_dir=args.cache_dir)


def second_start(args: argparse.Namespace) -> dict[str, object]:
    opened = []
    folder = os.path.abspath(args.data_dir)

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and os.path.abspath(arguments[0]).startswith(folder):
            opened.append(arguments[0])

    sys.addaudithook(watch)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    start = time.perf_counter()
    features = extracted(args)
    loader = DataLoader(features, batch_size=16, shuffle=True, collate_fn=PairCollator(MaxMViTFeatureExtractor()))
    batches = iter(loader)
    batch = next(batches)
    elapsed = time.perf_counter() - start
    print(f"second start: first batch {tuple(batch['images']['cqt'].shape)} after {elapsed:.2f} s", end=", ")
    print(f"{len(opened)} audio files opened")
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    batch_ms = 1e3 * (time.perf_counter() - start) / count
    start = time.perf_counter()
    for row in features:
        row["spectrograms"][0]
    read_ms = 1e3 * (time.perf_counter() - start) / len(features)
    print(f"then {batch_ms:.1f} ms per shuffled batch of 16, in this process; {read_ms:.2f} ms to read one clip")
    return {"second_start_s": elapsed, "audio_files_opened": len(opened), "batch_ms": batch_ms, "read_ms": read_ms}


# --- projection to a large corpus ---


def measure_scale(args: argparse.Namespace) -> dict[str, object]:
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    paths = spread(sorted(map(str, Path(args.data_dir).glob("Actor_*/*"))), args.clips)
    speech_s = sum(soundfile.info(path).duration for path in paths)
    byte_rate = sum(os.path.getsize(path) for path in paths) / speech_s
    print(f"{len(paths)} clips, {speech_s:.0f} s of speech, {byte_rate / 1e3:.0f} kB per second of speech")

    measured: dict[str, float] = {}
    for count in PROCESSES:
        taken_s, used_s = np.median([extraction_s(paths, count) for _ in range(args.rounds)], axis=0).tolist()
        measured |= {f"{count}_processes_clips_per_s": len(paths) / taken_s, f"{count}_processes_cpu_s": used_s}
        print(
            f"{count} process(es): {len(paths) / taken_s:.1f} clips/s; {1e3 * used_s / len(paths):.1f} ms of a core "
            f"for each clip, so {count * len(paths) / used_s:.1f} clips/s on free cores"
        )
    own = speech_s / used_s  # seconds of speech per second of a core, with the larger number of processes
    print()
    print(f"| {args.hours:g} hours of speech on | hours | from the disk |\n|---|---|---|")
    projected = {}
    for cores in args.cores:
        projected[f"{cores}_cores_h"] = args.hours / (own * cores)
        mib = own * cores * byte_rate / 2**20
        print(f"| {cores} cores | {projected[f'{cores}_cores_h']:.3g} | {mib:.0f} MiB/s |")
    if torch.cuda.is_available():
        projected["gpu_h"] = args.hours / gpu_rate(paths)
        print(f"| {torch.cuda.get_device_name()}, decoded waveforms | {projected['gpu_h']:.3g} | |")
    return {"clips": len(paths), "speech_s": speech_s, "hours": args.hours, **measured, **projected}


def spread(paths: list[str], count: int) -> list[str]:
    return [paths[index] for index in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]


def extraction_s(paths: list[str], processes: int) -> tuple[float, float]:
    """Returns the wall-clock time and the CPU time for all clips, from files to cached spectrograms."""
    clips = Dataset.from_dict({"file": [Path(path).name for path in paths], "audio": paths})
    clips = clips.cast_column("audio", Audio(decode=False))
    with tempfile.TemporaryDirectory() as folder:
        start, worked = time.perf_counter(), cpu_s()
        extract_features(clips, MaxMViTFeatureExtractor(), num_workers=processes, cache_dir=folder)
        return time.perf_counter() - start, cpu_s() - worked


def cpu_s() -> float:
    """Returns the CPU time of this process and its ended children."""
    uses = [resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def gpu_rate(paths: list[str]) -> float:
    """Returns the seconds of speech per second for spectrograms of decoded waveforms on a GPU."""
    extractor = MaxMViTFeatureExtractor()
    waveforms = [read_audio(path, extractor.sampling_rate) for path in paths]
    batches = [waveforms[start : start + GPU_BATCH] for start in range(0, len(waveforms), GPU_BATCH)]
    extractor.spectrograms(batches[0], device="cuda")  # computes the filters once
    torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in batches:
        extractor.spectrograms(batch, device="cuda")
    torch.cuda.synchronize()
    return sum(map(len, waveforms)) / extractor.sampling_rate / (time.perf_counter() - start)


# --- plot ---


def plot_images(args: argparse.Namespace) -> dict[str, object]:
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
    return {"output": args.output}


if __name__ == "__main__":
    main()
