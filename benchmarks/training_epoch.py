"""How long an epoch takes, this way and the reference's.

    python -m benchmarks.training_epoch configs/ravdess_small.yaml --data_dir ../shared/data/ravdess

Takes the recipe and flags of run_ser.py. The reference computes the images with librosa at every epoch and trains in
float32 with two optimizers; here they are computed once, and read from disk. Both go over the same few batches, in
turns; the times are given per clip and for an epoch of the recipe. Where there is a GPU, the published model (base +
base) follows: a plain float32 loop, the engine's settings, and those with gradient checkpointing, on random images.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import run_ser
from benchmarks.training_overhead import StepClock, prepare, step_seconds
from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import read_audio
from ser.optimizer import BranchOptimizer, branch_modules, branch_parameter_groups

ROUNDS, BATCHES = 3, 2
# Dense bfloat16 peaks from NVIDIA's data sheets, in FLOP per second.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def main() -> None:
    recipe_epoch(sys.argv[1:])
    if torch.cuda.is_available():
        base_model(torch.device("cuda"))
    else:
        print("No GPU here: base + base in bfloat16 not measured.")


def recipe_epoch(arguments: list[str]) -> None:
    make_trainer, args = prepare(arguments)
    model_args, data_args, _ = run_ser.parse_arguments(arguments)
    settings = run_ser.make_feature_extractor(model_args).to_dict()
    extractor = MaxMViTFeatureExtractor.from_dict(settings | {"backend": "librosa"})
    audio = run_ser.read_corpus(data_args, args).clips
    batch_size = args.per_device_train_batch_size
    seconds: dict[str, list[float]] = {"here": [], "the reference's way": []}
    for turn in range(ROUNDS):
        clock = StepClock()
        trainer = make_trainer(callbacks=[clock])
        trainer.train()
        seconds["here"] += [each / batch_size for each in step_seconds(clock.times)]
        model = trainer.accelerator.unwrap_model(trainer.model)
        for batch in range(BATCHES):
            first = (turn * BATCHES + batch) * batch_size
            clips = audio.select(range(first, first + batch_size))
            started = time.perf_counter()
            reference_step(model, clips, extractor)
            seconds["the reference's way"].append((time.perf_counter() - started) / batch_size)
    count = len(trainer.train_dataset)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(f"{name:>20}: {1000 * median:7.1f} ms per clip, {median * count:7.1f} s per epoch of {count} clips")
    here, reference = medians.values()
    print(f"{'ratio':>20}: {reference / here:.2f}")


def reference_step(model: torch.nn.Module, clips, extractor: MaxMViTFeatureExtractor) -> None:
    waveforms = [read_audio(clip["audio"], extractor.sampling_rate) for clip in clips]
    images = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    train_step(model, {**images, "labels": torch.tensor(clips["label"][:])}, two_optimizers(model))


def two_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    mel = set(branch_modules(model)["mel"].parameters())
    return [torch.optim.Adam(p for p in model.parameters() if p not in mel), torch.optim.RAdam(mel)]


def train_step(
    model: torch.nn.Module, batch: dict, optimizers: list[torch.optim.Optimizer], bf16: bool = False
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
) -> None:
    """Samples per second, share of the peak and memory of training, for three ways to do it."""
    config = config or MaxMViTConfig(num_labels=4)
    shape = (batch_size, 3, config.image_size, config.image_size)
    batch = {
        "cqt_values": torch.randn(shape),
        "mel_values": torch.randn(shape),
        "labels": torch.arange(batch_size) % 4,
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    ways: dict[str, Callable] = {
        "plain float32 loop": plain,
        "engine, bfloat16": engine,
        "and checkpointing": lambda model: (model.activation_checkpointing_enable(), engine(model))[1],
    }
    rates = {}
    for name, prepare_model in ways.items():
        model = MaxMViTForAudioClassification(config).to(device)
        optimizers, bf16 = prepare_model(model)
        with FlopCounterMode(display=False) as counter:
            train_step(model, batch, optimizers, bf16)
        for _ in range(3):
            train_step(model, batch, optimizers, bf16)
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for _ in range(steps):
            train_step(model, batch, optimizers, bf16)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / steps
        rates[name] = batch_size / seconds
        speed = counter.get_total_flops() / seconds
        line = f"{name:>20}: {rates[name]:7.1f} clips per second, {speed / 1e12:.1f} TFLOP/s"
        if device.type == "cuda":
            chip = torch.cuda.get_device_name()
            peak = next((value for key, value in PEAKS.items() if key in chip), None)
            share = f" ({speed / peak:.0%} of the bfloat16 peak)" if peak else ""
            line += f"{share}, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, {chip}"
        print(line)
    print(f"{'ratio':>20}: {rates['engine, bfloat16'] / rates['plain float32 loop']:.2f}")


def plain(model: torch.nn.Module) -> tuple[list[torch.optim.Optimizer], bool]:
    return two_optimizers(model), False


def engine(model: torch.nn.Module) -> tuple[list[torch.optim.Optimizer], bool]:
    """What SERTrainer sets up for --bf16 --channels_last."""
    model.maxmvit.cqt_backbone.to(memory_format=torch.channels_last)
    algorithms, every = {"cqt": "adam", "mel": "radam", "head": "adam"}, ("cqt", "mel", "head")
    groups = branch_parameter_groups(model, algorithms, dict.fromkeys(every, 2e-4), dict.fromkeys(every, 0.0))
    return [BranchOptimizer(groups)], True


if __name__ == "__main__":
    main()
