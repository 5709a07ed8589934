"""How long a large corpus takes to extract: measured on this machine's processes, projected to more of them.

    python -m benchmarks.scale RAVDESS --clips 400 --hours 400 --cores 2 64 512

Measured is the extraction of clips from files to kept spectrograms, by 1 and by 2 processes of one thread each, and
where there is a GPU, spectrograms of ready waveforms on it. Beside the time stands what the processors worked for it:
on a machine with other work the first is longer, the second hardly. Projected is the second, of 2 processes:

- time grows with seconds of speech: clips longer than those measured cost less for each second, not more;
- the cores are free, are cores and not hyperthreads, and slow each other down no more than two do here; the disk
  delivers what is printed beside each number (files as large, a second, as those measured);
- one process for each core; starting them, and finding what is missing, is not in it.

A number of cores beyond those of this machine is a projection, and no measurement.
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
    parser.add_argument("--clips", type=int, default=400, help="measured, evenly spread over the corpus (default 400)")
    parser.add_argument("--hours", type=float, default=400, help="of speech, projected (default 400: MSP-Podcast's)")
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 64, 512])
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default 3)")
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
        taken_s, worked_s = np.median([extraction_s(paths, count) for _ in range(args.rounds)], axis=0).tolist()
        measured |= {f"{count}_processes_clips_per_s": len(paths) / taken_s, f"{count}_processes_cpu_s": worked_s}
        print(
            f"{count} process(es): {len(paths) / taken_s:.1f} clips/s; {1e3 * worked_s / len(paths):.1f} ms of a core "
            f"for each clip, so {count * len(paths) / worked_s:.1f} clips/s on free cores"
        )
    own = speech_s / worked_s  # seconds of speech in a second of one core, of the larger number of processes
    print()
    print(f"| {args.hours:g} hours of speech on | hours | from the disk |\n|---|---|---|")
    projected = {}
    for cores in args.cores:
        projected[f"{cores}_cores_h"] = args.hours / (own * cores)
        mib = own * cores * byte_rate / 2**20
        print(f"| {cores} cores | {projected[f'{cores}_cores_h']:.3g} | {mib:.0f} MiB/s |")
    if torch.cuda.is_available():
        projected["gpu_h"] = args.hours / gpu_rate(paths)
        print(f"| {torch.cuda.get_device_name()}, waveforms ready | {projected['gpu_h']:.3g} | |")
    figures = {"clips": len(paths), "speech_s": speech_s, "hours": args.hours}
    write_results(args.json, figures | measured | projected)


def spread(paths: list[str], count: int) -> list[str]:
    return [paths[index] for index in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]


def extraction_s(paths: list[str], processes: int) -> tuple[float, float]:
    """Seconds that all clips take, from files to spectrograms that are kept; and those that processors worked."""
    clips = Dataset.from_dict({"file": [Path(path).name for path in paths], "audio": paths})
    clips = clips.cast_column("audio", Audio(decode=False))
    with tempfile.TemporaryDirectory() as folder:
        start, worked = time.perf_counter(), worked_s()
        extract_features(clips, MaxMViTFeatureExtractor(), num_workers=processes, cache_dir=folder)
        return time.perf_counter() - start, worked_s() - worked


def worked_s() -> float:
    """What processors have worked for this process and its children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def gpu_rate(paths: list[str]) -> float:
    """Seconds of speech a second, of spectrograms of ready waveforms on a GPU."""
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
