"""What the engine costs: steps per second of a run on cached features, against a bare loop over ready batches.

    python -m benchmarks.training_overhead configs/ravdess_small.yaml --data_dir ../shared/data/ravdess

Takes the recipe and flags of run_ser.py. Both sides do the same forward, backward, clipping and update on batches of
the same size, in turns in one process; the bare loop loads, augments, logs and watches nothing. The ratio is that of
the median times of a step; the first of each turn is not counted.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import TrainerCallback

import run_ser
from ser.augmentation import make_augmentation
from ser.features import PairCollator
from ser.optimizer import branch_modules
from ser.protocols import make_split
from ser.trainer import SERTrainer, SERTrainingArguments

ROUNDS, STEPS = 4, 16


class StepClock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        synchronize(args.device)
        self.times.append(time.perf_counter())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


def main() -> None:
    make_trainer, args = prepare(sys.argv[1:])
    seconds: dict[str, list[float]] = {"engine": [], "bare loop": []}
    for _ in range(ROUNDS):
        clock = StepClock()
        trainer = make_trainer(callbacks=[clock])
        trainer.train()
        seconds["engine"] += step_seconds(clock.times)
        model = trainer.accelerator.unwrap_model(trainer.model)
        seconds["bare loop"] += step_seconds(list(bare_loop(model, trainer, args)))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(
            f"{name:>10}: {1 / median:7.2f} steps per second (batch {args.per_device_train_batch_size}, {args.device})"
        )
    print(f"     ratio: {medians['bare loop'] / medians['engine']:.3f}")


def prepare(arguments: list[str]) -> tuple[Callable[..., SERTrainer], SERTrainingArguments]:
    """What makes a trainer as run_ser.py would for these flags, to train `STEPS` steps and nothing besides."""
    model_args, data_args, args = run_ser.parse_arguments(arguments)
    args = dataclasses.replace(
        args, max_steps=STEPS, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, warmup_steps=0,
        lr_scheduler_type="constant", lr_scheduler_kwargs=None, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    corpus = run_ser.read_corpus(data_args, args)
    feature_extractor = run_ser.make_feature_extractor(model_args)
    corpus = run_ser.with_features(corpus, feature_extractor, data_args, args)
    split = make_split(corpus, data_args.protocol, 1, validation_share=data_args.validation_share, seed=args.seed)
    augmentation = make_augmentation(
        len(corpus.label_names), specaugment_masks=args.specaugment_masks, mixup_alpha=args.mixup_alpha
    )
    model = run_ser.make_model(run_ser.make_config(corpus, model_args), model_args)

    def make_trainer(**kwargs) -> SERTrainer:
        return SERTrainer(
            model=model,
            args=args,
            data_collator=PairCollator(feature_extractor),
            train_collator=PairCollator(feature_extractor, augmentation),
            train_dataset=corpus.clips.select(split.parts["train"]),
            **kwargs,
        )

    return make_trainer, args


def bare_loop(model: torch.nn.Module, trainer: SERTrainer, args: SERTrainingArguments) -> Iterator[float]:
    """Adam and RAdam on batches that lie ready on the device; yields the time at the end of each step."""
    loader = iter(trainer.get_train_dataloader())
    batches = [next(loader) for _ in range(min(4, len(trainer.get_train_dataloader())))]
    mel = set(branch_modules(model)["mel"].parameters())
    rest = [p for p in model.parameters() if p not in mel]
    fused = {"fused": True} if args.device.type == "cuda" else {}
    optimizers = [torch.optim.Adam(rest, args.learning_rate, **fused), torch.optim.RAdam(mel, args.learning_rate)]
    model.train()
    for step in range(STEPS):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), args.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        synchronize(args.device)
        yield time.perf_counter()


if __name__ == "__main__":
    main()
