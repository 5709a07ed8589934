"""Compares the time of an epoch with that of the reference implementation.

    python -m benchmarks.training_epoch configs/ravdess_small.yaml --data_dir ../shared/data/ravdess

The arguments are those of run_ser.py. The reference decodes the clips and computes the images with librosa in every
epoch, and trains in float32 with two optimizers; here the spectrograms are computed once, and read from disk. Both
train the same model on batches of the same size from the training part, in turn; the first steps are not counted.
Times are printed per clip and for an epoch of the recipe. If there is a GPU, the published model (base + base)
follows, on one batch of random images: a float32 loop with two optimizers, and a loop with the settings of the engine
for `--bf16 --channels_last`, without and with gradient checkpointing. The FLOP are those of the model's forward and
backward pass, without recomputation by checkpointing.
"""

import sys
from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from audio_maxmvit import read_audio
from benchmarks.results import take_json, write_results
from benchmarks.training_overhead import STEPS, StepClock, now, prepare
from configuration_maxmvit import MaxMViTConfig
from feature_extraction_maxmvit import MaxMViTFeatureExtractor
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.models import make_feature_extractor
from ser.training.optimizer import BranchOptimizer, branch_parameter_groups
from ser.training.run import parse_arguments, read_corpus

ROUNDS, BATCHES = 3, 2
# Dense bfloat16 peaks from NVIDIA's data sheets, in FLOP per second.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def main() -> None:
    json_path, flags = take_json(sys.argv[1:])
    figures: dict[str, object] = {"recipe": recipe_epoch(flags)}
    if torch.cuda.is_available():
        figures["base_model"] = base_model(torch.device("cuda"))
    else:
        print("No GPU: base + base in bfloat16 was not measured.")
    write_results(json_path, figures)


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
    for turn in range(ROUNDS):
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
    steps = {"here": ROUNDS * (STEPS - 1), "the reference's way": ROUNDS * BATCHES}
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


def two_optimizers(model: MaxMViTForAudioClassification) -> list[torch.optim.Optimizer]:
    mel = set(model.branches()["mel"].parameters())
    return [torch.optim.Adam(p for p in model.parameters() if p not in mel), torch.optim.RAdam(mel)]


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


if __name__ == "__main__":
    main()
