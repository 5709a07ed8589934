"""Measures the overhead of the training engine: steps per second on cached spectrograms, and of a bare loop.

    python -m benchmarks.training_overhead configs/ravdess_small.yaml --data_dir ../shared/data/ravdess

The arguments are those of run_ser.py. Both do the same forward pass, backward pass, clipping and update on batches of
the same size, in turn in one process; the bare loop has ready batches, and does not render, augment, log or check
anything. Time is measured from the end of the first step of a turn to the end of its last.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import TrainerCallback

from benchmarks.results import take_json, write_results
from modeling_maxmvit import MaxMViTForAudioClassification
from ser.data.protocols import make_split
from ser.models import make_config, make_feature_extractor, make_model, name_classes
from ser.training.arguments import SERTrainingArguments
from ser.training.run import make_trainer, parse_arguments, read_corpus, with_features
from ser.training.trainer import SERTrainer

ROUNDS, STEPS = 4, 16


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


def main() -> None:
    json_path, flags = take_json(sys.argv[1:])
    make_trainer, args = prepare(flags)
    seconds = {"engine": 0.0, "bare loop": 0.0}
    for _ in range(ROUNDS):
        clock = StepClock()
        trainer = make_trainer(callbacks=[clock])
        trainer.train()
        seconds["engine"] += clock.seconds
        seconds["bare loop"] += bare_loop(trainer.accelerator.unwrap_model(trainer.model), trainer, args)
    count = ROUNDS * (STEPS - 1)
    for name, total in seconds.items():
        print(
            f"{name:>10}: {count / total:7.2f} steps per second (batch {args.per_device_train_batch_size}, "
            f"{args.device}, {count} steps)"
        )
    print(f"     ratio: {seconds['bare loop'] / seconds['engine']:.3f}")
    rates = {f"{name}, steps per second": count / total for name, total in seconds.items()}
    write_results(json_path, {"batch_size": args.per_device_train_batch_size, **rates})


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
    mel = set(model.branches()["mel"].parameters())
    rest = [p for p in model.parameters() if p not in mel]
    fused: dict[str, Any] = {"fused": True} if args.device.type == "cuda" else {}
    optimizers = [torch.optim.Adam(rest, args.learning_rate, **fused), torch.optim.RAdam(mel, args.learning_rate)]
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


if __name__ == "__main__":
    main()
