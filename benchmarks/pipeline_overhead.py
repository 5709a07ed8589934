"""
Measures the overhead of the pipeline: the same batches of features run through the bare model and through
`pipeline("audio-classification")` in turn. The target is at most 10 %.

    python -m benchmarks.pipeline_overhead [CHECKPOINT] [--clips 64] [--batch_size 16] [--rounds 5] [--device cpu]

The default checkpoint is the model of configs/ravdess_small.yaml with random weights.
"""

import argparse
import time

import numpy as np
import torch

from benchmarks.results import add_json, write_results
from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline

SMALL = {
    "cqt_backbone_kwargs": {"embed_dim": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "stem_width": 16,
                            "head_hidden_size": 256},
    "mel_backbone_kwargs": {"depths": [1, 1, 2, 1], "embed_dim": 32, "num_heads": 1},
    "image_size": 128,
    "num_labels": 8,
}  # fmt: skip


class Prepared:
    """Stands in for a feature extractor, and returns prepared features batch by batch."""

    sampling_rate = 44_100

    def __init__(self, batches: list[dict[str, torch.Tensor]]):
        self.batches, self.index = batches, 0

    def spectrograms(self, waveforms: list[np.ndarray], device: torch.device) -> list[dict[str, torch.Tensor]]:
        return [{} for _ in waveforms]

    def images(self, spectrograms: list[dict[str, torch.Tensor]], branches: list[str]) -> dict[str, torch.Tensor]:
        self.index += 1
        return self.batches[(self.index - 1) % len(self.batches)]

    def waveform_inputs(self, spectrograms: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {}

    def normalize(self, images: torch.Tensor, branch: str) -> torch.Tensor:
        return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.7, help="length of a clip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    add_json(parser)
    args = parser.parse_args()
    torch.manual_seed(0)
    build = MaxMViTForAudioClassification
    model = build.from_pretrained(args.checkpoint) if args.checkpoint else build(MaxMViTConfig(**SMALL))
    model = model.eval().to(args.device)
    size = model.config.image_size
    batches = [
        {name: torch.rand(len(clips), 3, size, size, device=args.device) for name in ("cqt_values", "mel_values")}
        for clips in torch.arange(args.clips).split(args.batch_size)
    ]
    noise = np.random.default_rng(0).standard_normal(round(args.seconds * Prepared.sampling_rate), dtype=np.float32)
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=Prepared(batches), task="audio-classification", device=args.device
    )

    def through_the_model() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(**batch).logits.cpu() for batch in batches]

    def through_the_pipeline() -> list:
        return classify([noise] * args.clips, batch_size=args.batch_size)

    times: dict[str, list[float]] = {"model": [], "pipeline": []}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, run in (("model", through_the_model), ("pipeline", through_the_pipeline)):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    model_s, pipeline_s = (float(np.median(times[name][1:])) for name in ("model", "pipeline"))
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{args.clips} clips of {args.seconds} s in batches of {args.batch_size}, {parameters:.1f} M parameters, "
          f"images of {size}, {args.device}, median of {args.rounds}")  # fmt: skip
    print(f"model {model_s * 1e3:.1f} ms   pipeline {pipeline_s * 1e3:.1f} ms   "
          f"overhead {100 * (pipeline_s / model_s - 1):+.1f} %")  # fmt: skip
    write_results(args.json, {"clips": args.clips, "model_s": model_s, "pipeline_s": pipeline_s})


if __name__ == "__main__":
    main()
