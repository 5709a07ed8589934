"""Measures the extraction of features by this machine's processes, and projects it to a large corpus and more cores.

    python -m benchmarks.scale RAVDESS --clips 400 --hours 400 --cores 2 64 512

The command measures the extraction of clips from files to cached spectrograms, by 1 and by 2 processes of one thread
each and, if there is a GPU, the spectrograms of decoded waveforms on it. It prints wall-clock time and CPU time; other
work on the machine increases the first, but hardly the second. The projection is from the CPU time of 2 processes, and
assumes that:

- time is proportional to the seconds of speech (longer clips need no more time per second);
- the cores are free, are not hyperthreads, and slow each other down no more than two cores do here; the disk is as
  fast as printed beside each number (for files with the measured bit rate);
- there is one process per core, and starting them and finding missing clips takes no time.

Figures for more cores than this machine has are projections, not measurements.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from datasets import Audio, Dataset

from audio_maxmvit import read_audio
from benchmarks.results import add_json, write_results
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.data.features import extract_features

PROCESSES = (1, 2)
GPU_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument(
        "--clips", type=int, default=400, help="measured clips, evenly spread over the corpus (default 400)"
    )
    parser.add_argument("--hours", type=float, default=400, help="hours of speech to project to (default 400)")
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 64, 512])
    parser.add_argument("--rounds", type=int, default=3, help="measurements, of which the median is taken (default 3)")
    add_json(parser)
    args = parser.parse_args()
    if not args.data_dir:
        parser.error("name the folder of RAVDESS, or set SER_RAVDESS_DIR")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    paths = spread(sorted(map(str, Path(args.data_dir).glob("Actor_*/*"))), args.clips)
    speech_s = sum(soundfile.info(path).duration for path in paths)
    byte_rate = sum(os.path.getsize(path) for path in paths) / speech_s
    print(f"{len(paths)} clips, {speech_s:.0f} s of speech, {byte_rate / 1e3:.0f} kB a second of it")

    measured: dict[str, float] = {}
    for count in PROCESSES:
        taken_s, cpu_s = np.median([extraction_s(paths, count) for _ in range(args.rounds)], axis=0).tolist()
        measured |= {f"{count}_processes_clips_per_s": len(paths) / taken_s, f"{count}_processes_cpu_s": cpu_s}
        print(
            f"{count} process(es): {len(paths) / taken_s:.1f} clips/s; {1e3 * cpu_s / len(paths):.1f} ms of a core "
            f"for each clip, so {count * len(paths) / cpu_s:.1f} clips/s on free cores"
        )
    own = speech_s / cpu_s  # seconds of speech per second of a core, with the larger number of processes
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
    figures = {"clips": len(paths), "speech_s": speech_s, "hours": args.hours}
    write_results(args.json, figures | measured | projected)


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
    extractor.spectrograms(batches[0], device="cuda")  # its filters, once
    torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in batches:
        extractor.spectrograms(batch, device="cuda")
    torch.cuda.synchronize()
    return sum(map(len, waveforms)) / extractor.sampling_rate / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
