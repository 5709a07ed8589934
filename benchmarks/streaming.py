"""Measures the memory of training on streamed clips for different numbers of clips.

    python -m benchmarks.streaming RAVDESS --clips 2000 200000 --folder SCRATCH

The middle 0.3 s of each RAVDESS recording are a clip, 26 kB in parquet files of 2,000 rows; for more clips, rows are
repeated within each speaker. `run_ser.py --streaming` then trains one epoch on all speakers except one, which is
tested, in a separate process with one worker and a model of 8,000 weights. Twice per second the memory of all its
processes is added up:

- RSS: the memory of each process, in which a shared page counts several times;
- PSS: the same, with shared pages divided among the processes.

The command prints the highest sums, and the difference between the largest and the smallest number of clips. Clips per
second are those of the whole command, in which every clip is read twice, for the table and for its batch.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import soundfile
from datasets import Audio, Features, Value
from pyarrow import parquet

from audio_maxmvit import read_audio
from benchmarks.results import add_json, write_results
from ser.data.corpora import RECORDS

ROOT = Path(__file__).parents[1]
RATE, SECONDS = 44_100, 0.3
ROWS_OF_FILE, ROWS_OF_GROUP = 2000, 100
SAMPLED_EVERY_S = 0.5
FEATURES = Features({"audio": Audio(sampling_rate=RATE), "label": Value("string"), "speaker": Value("string")})
FLAGS = [
    "--streaming", "--label_column_name", "label", "--num_train_epochs", "1", "--validation_share", "0",
    "--save_strategy", "no", "--lr_scheduler_type", "constant", "--warmup_steps", "0", "--report_to", "none",
    "--disable_tqdm", "true", "--logging_strategy", "no", "--use_cpu", "--imagenet_weights", "false",
    "--cqt_backbone", "convnet", "--mel_backbone", "none", "--hidden_size", "16", "--image_size", "32",
    "--cqt_backbone_kwargs", '{"channels": [4, 8, 16]}', "--feature_extractor_kwargs", '{"image_size": 32}',
    "--per_device_train_batch_size", "64", "--per_device_eval_batch_size", "64", "--dataloader_num_workers", "1",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default=os.environ.get("SER_RAVDESS_DIR"))
    parser.add_argument(
        "--clips", type=int, nargs="+", default=[2000, 200_000], help="numbers of clips (default 2000 200000: 5.4 GB)"
    )
    parser.add_argument("--folder", help="folder for temporary shards (default: that of the system)")
    add_json(parser)
    args = parser.parse_args()
    if not args.data_dir:
        parser.error("name the folder of RAVDESS, or set SER_RAVDESS_DIR")
    clips = cut_clips(Path(args.data_dir))
    print(f"{len(clips)} clips of {SECONDS} s; RSS and PSS are sums over all processes of a command.")
    measured = {}
    for count in sorted(args.clips):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write_shards(Path(folder) / "shards", clips, count)
            measured[str(count)] = found = train(Path(folder))
            found["clips_per_s"] = count / found["seconds"]
        print(
            f"{count:>9,} clips: {found['seconds']:7.0f} s, {found['clips_per_s']:6.1f} clips/s; peak RSS "
            f"{found['rss_gib']:.2f} GiB, PSS {found['pss_gib']:.2f} GiB",
            flush=True,
        )
    few, many = (measured[str(count)] for count in (min(args.clips), max(args.clips)))
    more = {f"more_{kind}": many[kind] - few[kind] for kind in ("rss_gib", "pss_gib")}
    print(f"{'more':>15}: RSS {more['more_rss_gib']:+.2f} GiB, PSS {more['more_pss_gib']:+.2f} GiB")
    write_results(args.json, {"clips": measured, **more})


def cut_clips(folder: Path) -> list[dict]:
    """Returns the middle of each recording of speech as a row of a table."""
    rows = []
    for known in RECORDS["ravdess"].tree(folder):
        if "label" in known:
            waveform = read_audio(known["audio"], RATE)
            start = (len(waveform) - int(SECONDS * RATE)) // 2
            file = io.BytesIO()
            middle = waveform[start : start + int(SECONDS * RATE)]
            soundfile.write(file, middle, RATE, format="WAV", subtype="PCM_16")
            audio = {"bytes": file.getvalue(), "path": known["audio"].name}
            rows.append({"audio": audio, "label": known["label"], "speaker": known["speaker"]})
    return rows


def write_shards(folder: Path, clips: list[dict], count: int) -> None:
    """Writes so many rows, with each clip equally often, in the form of `datasets` and the Hub."""
    folder.mkdir()
    schema, files = FEATURES.arrow_schema, -(-count // ROWS_OF_FILE)
    for file in range(files):
        rows = [clips[row % len(clips)] for row in range(file * ROWS_OF_FILE, min(count, (file + 1) * ROWS_OF_FILE))]
        path = folder / f"train-{file:05d}-of-{files:05d}.parquet"
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=ROWS_OF_GROUP)


def train(folder: Path) -> dict[str, float]:
    """Trains one epoch on the shards in a folder; returns the seconds and the highest sums of memory."""
    command = [sys.executable, str(ROOT / "run_ser.py"), *FLAGS, "--dataset_name", str(folder / "shards")]
    command += ["--cache_dir", str(folder / "cache"), "--output_dir", str(folder / "out"), "--test_speakers", "24"]
    started, peaks = time.perf_counter(), {"rss_gib": 0.0, "pss_gib": 0.0}
    with open(folder / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as training:
        while training.poll() is None:
            peaks = {kind: max(peaks[kind], now) for kind, now in memory_of(psutil.Process(training.pid)).items()}
            time.sleep(SAMPLED_EVERY_S)
    if training.returncode:
        sys.exit((folder / "log").read_text()[-2000:])
    return {"seconds": time.perf_counter() - started, **peaks}


def memory_of(process: psutil.Process) -> dict[str, float]:
    """Returns the current memory of a process and its children in GiB."""
    sums = {"rss_gib": 0.0, "pss_gib": 0.0}
    for each in (process, *process.children(recursive=True)):
        try:
            found = each.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        sums = {kind: total + getattr(found, kind[:3]) / 2**30 for kind, total in sums.items()}
    return sums


if __name__ == "__main__":
    main()
