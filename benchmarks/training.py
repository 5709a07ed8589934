"""Training: steps per second, the time of an epoch, OpenMP's settings, and learning rates.

    python -m benchmarks.training overhead configs/ravdess_small.yaml --data_dir RAVDESS
    python -m benchmarks.training epoch configs/ravdess_small.yaml --data_dir RAVDESS
    python -m benchmarks.training openmp               # on a machine that is otherwise idle
    python -m benchmarks.training learning_rates       # draws docs/learning_rates.png

`overhead` and `epoch` take the arguments of run_ser.py.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from matplotlib.figure import Figure
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from audio_maxmvit import read_audio
from benchmarks.results import add_command, parser_of, run
from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.cli import parse_arguments
from ser.data.prepare import read_corpus, with_features
from ser.data.protocols import make_split
from ser.models import make_config, make_feature_extractor, make_model, name_classes
from ser.training.arguments import SERTrainingArguments
from ser.training.checkpoints import last_checkpoint
from ser.training.optimizer import BranchOptimizer, branch_parameter_groups
from ser.training.run import make_trainer
from ser.training.trainer import SERTrainer

ROUNDS, STEPS = 4, 16
EPOCH_ROUNDS, BATCHES = 3, 2
# Dense bfloat16 peaks from NVIDIA's data sheets, in FLOP per second.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "demo.yaml"
PASSIVELY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
OURS, UNSET = "with the commands' settings", "without"
PLATEAU = ["--lr_scheduler_type", "reduce_lr_on_plateau"]
RUNS = {
    "0.02 (the paper)": ["--learning_rate", "0.02", *PLATEAU],
    "0.0002 (its re-implementation)": ["--learning_rate", "0.0002", *PLATEAU],
    "0.002, cosine (the demo recipe)": [],
}
OVERHEAD = """Measures steps per second of the training engine on cached spectrograms, and of a bare loop.

The arguments are those of run_ser.py. Both do the same forward pass, backward pass, clipping and update on batches of
the same size, in turn in one process; the bare loop has ready batches, and does not render, augment, log or check
anything. Time is measured from the end of the first step of a turn to the end of its last."""
EPOCH = """Compares the time of an epoch with that of the reference implementation.

The arguments are those of run_ser.py. The reference decodes the clips and computes the images with librosa in every
epoch, and trains in float32 with two optimizers; here the spectrograms are computed once, and read from disk. Both
train the same model on batches of the same size from the training part, in turn; the first steps are not counted.
Times are printed per clip and for an epoch of the recipe. If there is a GPU, the published model (base + base)
follows, on one batch of random images: a float32 loop with two optimizers, and a loop with the settings of the engine
for --bf16 --channels_last, without and with gradient checkpointing. The FLOP are those of the model's forward and
backward pass, without recomputation by checkpointing."""
OPENMP = """Measures steps per second of the demo's model with and without the OpenMP settings of the commands.

They are measured without other work and beside busy processes; each figure is the median of several processes,
alternately with and without the settings."""
LEARNING_RATES = """Compares learning rates on the demo recipe, with a plot.

The paper (Table 2) trains every branch at 0.02; its re-implementation settled on 0.0002. Both are run with
reduce_lr_on_plateau, as there, and the recipe's own rate, 0.002, with its cosine schedule, on the same model, clips
and seed."""


def main() -> None:
    parser, commands = parser_of(__doc__)
    add_command(commands, "overhead", measure_overhead, OVERHEAD, takes_flags=True)
    add_command(commands, "epoch", measure_epoch, EPOCH, takes_flags=True)
    openmp = add_command(commands, "openmp", measure_openmp, OPENMP)
    openmp.add_argument("--seconds", type=float, default=10, help="training time of each process, at least one step")
    openmp.add_argument("--rounds", type=int, default=3, help="processes for each figure")
    openmp.add_argument("--busy", type=int, default=1, help="number of busy processes during the training")
    openmp.add_argument("--only_train", action="store_true", help=argparse.SUPPRESS)  # for the process of one figure
    rates = add_command(commands, "learning_rates", measure_learning_rates, LEARNING_RATES)
    rates.add_argument("--figure", default="docs/learning_rates.png", help="file of the plot")
    rates.add_argument("--cache_dir", help="folder for the demo corpus and its features")
    run(parser)


# --- overhead ---


def measure_overhead(args: argparse.Namespace) -> dict[str, object]:
    make_trainer, settings = prepare(args.flags)
    seconds = {"engine": 0.0, "bare loop": 0.0}
    for _ in range(ROUNDS):
        clock = StepClock()
        trainer = make_trainer(callbacks=[clock])
        trainer.train()
        seconds["engine"] += clock.seconds
        seconds["bare loop"] += bare_loop(trainer.accelerator.unwrap_model(trainer.model), trainer, settings)
    count = ROUNDS * (STEPS - 1)
    for name, total in seconds.items():
        print(
            f"{name:>10}: {count / total:7.2f} steps per second (batch {settings.per_device_train_batch_size}, "
            f"{settings.device}, {count} steps)"
        )
    print(f"     ratio: {seconds['bare loop'] / seconds['engine']:.3f}")
    rates = {f"{name}, steps per second": count / total for name, total in seconds.items()}
    return {"batch_size": settings.per_device_train_batch_size, **rates}


class StepClock(TrainerCallback):
    """Measures the seconds from the end of the first step to the end of the last."""

    def __init__(self):
        self.seconds = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.seconds = -now(args.device)
        elif state.global_step == state.max_steps:
            self.seconds += now(args.device)


def now(device: torch.device) -> float:
    """Returns the time in seconds after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def prepare(arguments: list[str]) -> tuple[Callable[..., SERTrainer], SERTrainingArguments]:
    """Returns a function that creates the trainer of run_ser.py for these options, limited to `STEPS` steps."""
    model_args, data_args, args = parse_arguments(arguments)
    if args.gradient_accumulation_steps > 1:
        sys.exit("error: a step must be one batch here: leave out --gradient_accumulation_steps.")
    changes: dict[str, Any] = {
        "max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
        "warmup_steps": 0, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "report_to": "none",
        "disable_tqdm": True,
    }  # fmt: skip
    args = dataclasses.replace(args, **changes)
    corpus = read_corpus(data_args, args)
    feature_extractor = make_feature_extractor(model_args)
    corpus = with_features(corpus, feature_extractor, data_args, args)
    split = make_split(
        corpus,
        data_args.protocol,
        1,
        validation_share=data_args.validation_share,
        seed=args.seed,
        test_speakers=data_args.test_speakers,
    )
    parts = {part: corpus.clips.select(indices) for part, indices in split.parts.items()}
    model = make_model(name_classes(make_config(model_args), corpus.label_names), model_args)

    return partial(make_trainer, model, parts, feature_extractor, args), args


def bare_loop(model: MaxMViTForAudioClassification, trainer: SERTrainer, args: SERTrainingArguments) -> float:
    """Trains by Adam and RAdam on batches on the device; returns the seconds from the end of the first step."""
    loader = iter(trainer.get_train_dataloader())
    count = min(4, len(trainer.get_train_dataloader()))
    batches = [trainer.normalized(next(loader)) for _ in range(count)]
    optimizers = two_optimizers(model, args.learning_rate, fused=args.device.type == "cuda" or None)
    model.train()
    started = 0.0
    for step in range(STEPS):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), args.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step == 0:
            started = now(args.device)
    return now(args.device) - started


# --- an epoch compared with that of the reference implementation ---


def measure_epoch(args: argparse.Namespace) -> dict[str, object]:
    figures: dict[str, object] = {"recipe": recipe_epoch(args.flags)}
    if torch.cuda.is_available():
        figures["base_model"] = base_model(torch.device("cuda"))
    else:
        print("No GPU: base + base in bfloat16 was not measured.")
    return figures


def recipe_epoch(arguments: list[str]) -> dict[str, float]:
    make_trainer, args = prepare(arguments)
    model_args, data_args, _ = parse_arguments(arguments)
    settings = make_feature_extractor(model_args).to_dict()
    extractor = MaxMViTFeatureExtractor.from_dict(settings | {"backend": "librosa"})
    audio = read_corpus(data_args, args).clips
    rows = {file: row for row, file in enumerate(audio["file"])}
    batch_size = args.per_device_train_batch_size
    seconds = {"here": 0.0, "the reference's way": 0.0}
    optimizers = None
    for turn in range(EPOCH_ROUNDS):
        clock = StepClock()
        trainer = make_trainer(callbacks=[clock])
        trainer.train()
        seconds["here"] += clock.seconds
        model = trainer.accelerator.unwrap_model(trainer.model)
        files = trainer.train_dataset["file"][:]
        for batch in range(BATCHES):
            first = (turn * BATCHES + batch) * batch_size
            clips = audio.select([rows[files[(first + i) % len(files)]] for i in range(batch_size)])
            if optimizers is None:
                optimizers = two_optimizers(model)
                reference_step(model, clips, extractor, optimizers)
            started = now(args.device)
            reference_step(model, clips, extractor, optimizers)
            seconds["the reference's way"] += now(args.device) - started
    count = len(trainer.train_dataset)
    steps = {"here": EPOCH_ROUNDS * (STEPS - 1), "the reference's way": EPOCH_ROUNDS * BATCHES}
    per_clip = {name: total / steps[name] / batch_size for name, total in seconds.items()}
    for name, each in per_clip.items():
        print(f"{name:>20}: {1000 * each:7.1f} ms per clip, {each * count:7.1f} s per epoch of {count} clips")
    here, reference = per_clip.values()
    print(f"{'ratio':>20}: {reference / here:.2f}")
    return {"here_ms_per_clip": 1000 * here, "reference_ms_per_clip": 1000 * reference, "clips": count}


def reference_step(
    model: MaxMViTForAudioClassification,
    clips: datasets.Dataset,
    extractor: MaxMViTFeatureExtractor,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    waveforms = [read_audio(clip["audio"], extractor.sampling_rate) for clip in clips]
    images = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    batch = {**images, "labels": torch.tensor(clips["label"][:])}
    device = next(model.parameters()).device
    train_step(model, {name: value.to(device) for name, value in batch.items()}, optimizers)


def two_optimizers(
    model: MaxMViTForAudioClassification, learning_rate: float = 1e-3, fused: bool | None = None
) -> list[torch.optim.Optimizer]:
    """Returns Adam for all parameters except those of the Mel branch, and RAdam for these."""
    mel = set(model.branches()["mel"].parameters())
    rest = [parameter for parameter in model.parameters() if parameter not in mel]
    return [torch.optim.Adam(rest, learning_rate, fused=fused), torch.optim.RAdam(mel, learning_rate)]


def train_step(
    model: MaxMViTForAudioClassification, batch: dict, optimizers: list[torch.optim.Optimizer], bf16: bool = False
) -> None:
    model.train()
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = model(**batch).loss
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def base_model(
    device: torch.device, config: MaxMViTConfig | None = None, batch_size: int = 16, steps: int = 20
) -> dict[str, dict[str, float]]:
    """Measures clips per second, share of the peak and memory of training in three ways."""
    config = config or MaxMViTConfig(num_labels=4)
    size: Any = config.image_size
    shape = (batch_size, 3, size, size)
    batch = {
        "cqt_values": torch.randn(shape),
        "mel_values": torch.randn(shape),
        "labels": torch.arange(batch_size) % 4,
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    ways: dict[str, Callable] = {
        "float32, two optimizers": plain,
        "bfloat16, engine's settings": engine,
        "the same, checkpointed": lambda model: (model.activation_checkpointing_enable(), engine(model))[1],
    }
    chip = torch.cuda.get_device_name() if device.type == "cuda" else str(device)
    peak = next((value for key, value in PEAKS.items() if key in chip), None)
    rates, flops, figures = [], 0, {}
    for name, prepare_model in ways.items():
        model = MaxMViTForAudioClassification(config).to(device)
        optimizers, bf16 = prepare_model(model)
        if not flops:  # counted on the first, which is not checkpointed
            with FlopCounterMode(display=False) as counter:
                train_step(model, batch, optimizers, bf16)
            flops = counter.get_total_flops()
        for _ in range(3):
            train_step(model, batch, optimizers, bf16)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = now(device)
        for _ in range(steps):
            train_step(model, batch, optimizers, bf16)
        seconds = (now(device) - started) / steps
        rates.append(batch_size / seconds)
        line = f"{name:>27}: {rates[-1]:7.1f} clips per second, {flops / seconds / 1e12:.1f} TFLOP/s"
        figures[name] = {"clips per second": rates[-1], "TFLOP per second": flops / seconds / 1e12}
        if peak and bf16:
            line += f" ({flops / seconds / peak:.0%} of the bfloat16 peak)"
        if device.type == "cuda":
            figures[name]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            line += f", {figures[name]['peak_gib']:.1f} GiB"
        print(f"{line}, {chip}")
    print(f"{'ratio of the first two':>27}: {rates[1] / rates[0]:.2f}")
    return figures


def plain(model: MaxMViTForAudioClassification) -> tuple[list[torch.optim.Optimizer], bool]:
    return two_optimizers(model), False


def engine(model: MaxMViTForAudioClassification) -> tuple[list[torch.optim.Optimizer], bool]:
    """Sets up a model like SERTrainer with --bf16 --channels_last."""
    model.branches()["cqt"].to(memory_format=torch.channels_last)
    algorithms, every = {"cqt": "adam", "mel": "radam", "head": "adam"}, ("cqt", "mel", "head")
    groups = branch_parameter_groups(model, algorithms, dict.fromkeys(every, 2e-4), dict.fromkeys(every, 0.0))
    return [BranchOptimizer(groups)], True


# --- OpenMP ---


def measure_openmp(args: argparse.Namespace) -> dict[str, object]:
    if args.only_train:
        return {"steps_per_second": steps_per_second(args.seconds)}
    figures = {}
    for name, count in (("idle", 0), (f"beside {args.busy} busy process(es)", args.busy)):
        with busy_processes(count):
            rates: dict[str, list[float]] = {OURS: [], UNSET: []}
            for _ in range(args.rounds):
                for setting, found in rates.items():
                    found.append(train_elsewhere(PASSIVELY if setting == OURS else {}, args.seconds))
        figures[name] = {setting: statistics.median(found) for setting, found in rates.items()}
        ours, unset = figures[name][OURS], figures[name][UNSET]
        print(f"{name}: {ours:.3f} steps/s {OURS}, {unset:.3f} {UNSET}: {ours / unset:.2f} times as fast", flush=True)
    return {"steps_per_second": figures}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train_elsewhere(settings: dict[str, str], seconds: float) -> float:
    """Returns the steps per second of a process with these settings, and no other settings of OpenMP."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        flags = ["--only_train", "--seconds", str(seconds), "--json", str(found)]
        command = [sys.executable, "-m", "benchmarks.training", "openmp", *flags]
        subprocess.run(command, env=environment | settings, check=True)
        return json.loads(found.read_text())["figures"]["steps_per_second"]


def steps_per_second(seconds: float) -> float:
    """Trains the demo's model repeatedly on one batch, after two steps to warm up; returns the steps per second."""
    torch.manual_seed(0)
    model_args, _, args = parse_arguments([str(RECIPE)])
    model = make_model(name_classes(make_config(model_args), ["neutral", "happy", "angry", "sad"]), model_args).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    size = args.per_device_train_batch_size
    images = {f"{branch}_values": torch.rand(size, 1, 64, 64) for branch in model.branches()}
    labels = torch.arange(size) % 4
    steps, start = -2, time.perf_counter()
    while steps < 1 or time.perf_counter() - start < seconds:
        if steps == 0:
            start = time.perf_counter()
        model(**images, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return steps / (time.perf_counter() - start)


# --- learning rates ---


def measure_learning_rates(args: argparse.Namespace) -> dict[str, object]:
    cache = ["--cache_dir", args.cache_dir] if args.cache_dir else []
    histories, scores = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, flags) in enumerate(RUNS.items()):
            output = Path(folder) / str(index)
            command = [sys.executable, str(ROOT / "run_ser.py"), str(RECIPE), *flags, *cache, "--report_to", "none"]
            subprocess.run([*command, "--output_dir", str(output)], check=True)
            checkpoint = last_checkpoint(output)
            assert checkpoint is not None  # written by run_ser.py
            state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
            histories[name] = state["log_history"]
            scores[name] = json.loads((output / "metrics.json").read_text())["UA"]
    plot_histories(histories, Path(args.figure))
    print("\n".join(f"{name}: test UA {score:.3f}" for name, score in scores.items()))
    return {"test_UA": scores, "histories": histories}


def plot_histories(histories: dict[str, list[dict]], path: Path) -> None:
    figure = Figure(figsize=(10, 3.6), dpi=120, layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("loss", "eval_UA"), ("training loss", "validation UA"), strict=True
    ):
        for name, history in histories.items():
            points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    axes.axhline(0.25, color="#666666", linestyle=":", label="chance")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
