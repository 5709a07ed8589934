"""Memory: of the paper's model in training and prediction, and of training on streamed clips.

python -m benchmarks.memory model [--clips 2]
python -m benchmarks.memory model --pairs all      # or some of them: --pairs gated+mlp bilinear+decoder
python -m benchmarks.memory streaming RAVDESS --clips 2000 200000 --folder SCRATCH
"""

import argparse
import io
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pyarrow as pa
import soundfile
import torch
from datasets import Audio, Features, Value
from pyarrow import parquet

from audio_maxmvit import read_audio
from benchmarks.results import add_command, add_ravdess, parser_of, run
from configuration_maxmvit import FUSION_NAMES, HEAD_NAMES, MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.data.corpora import RECORDS

PAIRS = [f"{fusion}+{head}" for fusion, head in itertools.product(FUSION_NAMES, HEAD_NAMES)]
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
MODEL = """Measures the paper's model (base + base): parameters, memory, and the time of a prediction.

The tensors that a step keeps for its backward pass are counted, which needs no GPU and holds for all of them; kernels
and allocator of a GPU need some more. Weights, their gradients and the two moments of Adam and RAdam are added, in
float32 whatever the precision of the pass.

With --pairs, every combination of fusion and head runs the forward and backward pass of one training step in bfloat16
with gradient checkpointing, each in its own process. The peak memory of that process includes weights and gradients in
float32, but not an optimizer's moments."""
STREAMING = """Measures the memory of training on streamed clips for different numbers of clips.

The middle 0.3 s of each RAVDESS recording are a clip, 26 kB in parquet files of 2,000 rows; for more clips, rows are
repeated within each speaker. run_ser.py --streaming then trains one epoch on all speakers except one, which is tested,
in a separate process with one worker and a model of 8,000 weights. Twice per second the memory of all its processes is
added up:

- RSS: the memory of each process, in which a shared page counts several times;
- PSS: the same, with shared pages divided among the processes.

The command prints the highest sums, and the difference between the largest and the smallest number of clips. Clips per
second are those of the whole command, in which every clip is read twice, for the table and for its batch."""


def main() -> None:
    parser, commands = parser_of(__doc__)
    model = add_command(commands, "model", measure_model, MODEL)
    model.add_argument("--clips", type=int, default=2, help="clips in the measured batch")
    model.add_argument("--batch_size", type=int, default=16, help="batch size for which the total is reported")
    model.add_argument("--pairs", nargs="+", metavar="FUSION+HEAD", help="fusions and heads to measure, or all")
    model.add_argument("--config", type=json.loads, default={}, help="JSON: changes to the model, for --pairs")
    model.add_argument("--step", metavar="FUSION+HEAD", help=argparse.SUPPRESS)  # for the process of one pair
    streaming = add_command(commands, "streaming", measure_streaming, STREAMING)
    add_ravdess(streaming)
    streaming.add_argument(
        "--clips", type=int, nargs="+", default=[2000, 200_000], help="numbers of clips (default 2000 200000: 5.4 GB)"
    )
    streaming.add_argument("--folder", help="folder for temporary shards (default: that of the system)")
    run(parser)


# --- the paper's model ---


def measure_model(args: argparse.Namespace) -> Mapping[str, object]:
    if args.step:
        return step(args.step, args.clips, args.config)
    if args.pairs:
        names = PAIRS if args.pairs == ["all"] else args.pairs
        return {name: in_a_process(name, args.clips, args.config) for name in names}
    model = MaxMViTForAudioClassification(MaxMViTConfig())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state_gib = 4 * 4 * parameters / 2**30
    print(f"{parameters / 1e6:.1f} M parameters; with gradients and two moments {state_gib:.1f} GiB")
    answer_s = seconds_per_prediction(model)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"prediction of a clip: {answer_s:.1f} s of a CPU core, peak {peak_gib:.1f} GiB")
    figures = {"parameters": parameters, "state_gib": state_gib, "answer_s": answer_s, "answer_peak_gib": peak_gib}
    for name, precision, checkpointed in (
        ("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False), ("checkpointed", torch.float32, True),
    ):  # fmt: skip
        if checkpointed:
            model.activation_checkpointing_enable()
        kept = kept_bytes(model, args.clips, precision) / args.clips / 2**30
        whole = state_gib + args.batch_size * kept
        figures[f"{name}_kept_gib_per_clip"] = kept
        print(
            f"{name:>12}: {kept:.2f} GiB kept per clip, {whole:.1f} GiB for a batch of {args.batch_size}", flush=True
        )
    return figures


def in_a_process(pair: str, clips: int, changes: dict) -> dict[str, float]:
    """Runs [`step`] in a separate process, and prints its result."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.memory", "model", "--step", pair, "--clips", str(clips)]
        subprocess.run([*command, "--config", json.dumps(changes), "--json", str(found)], check=True)
        taken = json.loads(found.read_text())["figures"]
    print(
        f"{pair:>18}: {taken['parameters'] / 1e6:6.1f} M parameters, forward {taken['forward_s']:.1f} s, "
        f"backward {taken['backward_s']:.1f} s, peak {taken['peak_gib']:.2f} GiB",
        flush=True,
    )
    return taken


def step(pair: str, clips: int, changes: dict) -> dict[str, float]:
    """Runs a forward and backward pass in bfloat16 with gradient checkpointing; returns seconds of a core and GiB."""
    fusion, head = pair.split("+")
    model = MaxMViTForAudioClassification(MaxMViTConfig(fusion=fusion, head=head, **changes)).train()
    model.activation_checkpointing_enable()
    batch = random_images(model, clips) | {"labels": torch.arange(clips) % model.config.num_labels}
    times = [time.process_time()]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    times.append(time.process_time())
    loss.backward()
    times.append(time.process_time())
    if not all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()):
        raise SystemExit(f"{pair}: a parameter has no finite gradient")
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "forward_s": times[1] - times[0],
        "backward_s": times[2] - times[1],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def random_images(model: MaxMViTForAudioClassification, clips: int) -> dict[str, torch.Tensor]:
    size = model.config.image_size
    return {f"{branch}_values": torch.randn(clips, 3, size, size) for branch in model.branches()}


@torch.no_grad()
def seconds_per_prediction(model: MaxMViTForAudioClassification) -> float:
    """Returns the median CPU time of the prediction of five single clips."""
    model.eval()
    times = []
    for _ in range(6):  # the first one warms up
        batch, start = random_images(model, 1), time.process_time()
        model(**batch)
        times.append(time.process_time() - start)
    return sorted(times[1:])[2]


def kept_bytes(model: MaxMViTForAudioClassification, clips: int, precision: torch.dtype) -> int:
    """Returns the bytes that the forward pass of a training step keeps for the backward pass, without weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # referenced, so that addresses are not reused
        return tensor

    model.train()
    batch = random_images(model, clips) | {"labels": torch.arange(clips) % model.config.num_labels}
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        model(**batch)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)


# --- streamed clips ---


def measure_streaming(args: argparse.Namespace) -> dict[str, object]:
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
    return {"clips": measured, **more}


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
    """Writes `count` rows, with each clip equally often, in the format of `datasets` and the Hub."""
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
