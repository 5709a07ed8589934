"""Times the extraction of RAVDESS with an empty cache, and a second start up to its first batch.

    python -m benchmarks.features_corpus ../shared/data/ravdess --num_workers 2

The second start is a new process, which counts the audio files that it opens.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from datasets import Audio, Dataset
from torch.utils.data import DataLoader

from benchmarks.results import add_json, write_results
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from ser.data.batches import PairCollator
from ser.data.features import extract_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument("--clips", type=int, help="number of clips, evenly spread over the corpus (default: all)")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--cache_dir", help="an empty folder; a temporary one by default")
    parser.add_argument("--second_start", action="store_true", help=argparse.SUPPRESS)
    add_json(parser)
    args = parser.parse_args()
    if args.second_start:
        return second_start(args)
    with tempfile.TemporaryDirectory() as folder:
        args.cache_dir = args.cache_dir or folder
        start = time.perf_counter()
        features = extracted(args)
        elapsed = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(args.cache_dir).rglob("*") if path.is_file())
        print(f"first start: {len(features)} clips in {elapsed:.1f} s, {size / 2**20:.0f} MiB on disk")
        sys.stdout.flush()
        second = Path(folder) / "second.json"
        again = [
            args.data_dir,
            "--cache_dir",
            args.cache_dir,
            "--num_workers",
            str(args.num_workers),
            *(["--clips", str(args.clips)] if args.clips else []),
            "--second_start",
            "--json",
            str(second),
        ]
        subprocess.run([sys.executable, "-m", "benchmarks.features_corpus", *again], check=True)
        first = {"clips": len(features), "first_start_s": elapsed, "disk_mib": size / 2**20}
        write_results(args.json, first | json.loads(second.read_text())["figures"])


def extracted(args: argparse.Namespace) -> Dataset:
    paths = sorted(map(str, Path(args.data_dir).glob("Actor_*/*")))
    paths = paths[:: max(1, len(paths) // args.clips)] if args.clips else paths
    labels = [int(Path(path).name.split("-")[2]) - 1 for path in paths]
    clips = Dataset.from_dict({"file": [Path(path).name for path in paths], "audio": paths, "label": labels})
    clips = clips.cast_column("audio", Audio(decode=False))
    return extract_features(clips, MaxMViTFeatureExtractor(), num_workers=args.num_workers, cache_dir=args.cache_dir)


def second_start(args: argparse.Namespace) -> None:
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
    figures = {"second_start_s": elapsed, "audio_files_opened": len(opened), "batch_ms": batch_ms, "read_ms": read_ms}
    write_results(args.json, figures)


if __name__ == "__main__":
    main()
