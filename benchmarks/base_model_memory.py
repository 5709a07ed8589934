"""What the paper's model (base + base) takes: parameters, memory of a training step, time and memory of an answer.

    python -m benchmarks.base_model_memory [--clips 2]

What a step keeps for its backward pass is counted tensor by tensor, so that it needs no GPU and holds for any; a GPU
adds what its kernels and allocator take. Weights, their gradients and the two moments of Adam and RAdam come on top,
in float32 whatever the pass computes in.
"""

import argparse
import resource
import time

import torch

from benchmarks.results import add_json, write_results
from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2, help="in the batch that is measured")
    parser.add_argument("--batch_size", type=int, default=16, help="that the sum is given for")
    add_json(parser)
    args = parser.parse_args()
    model = MaxMViTForAudioClassification(MaxMViTConfig())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state_gib = 4 * 4 * parameters / 2**30
    print(f"{parameters / 1e6:.1f} M parameters; with gradients and two moments {state_gib:.1f} GiB")
    answer_s = seconds_to_answer(model)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"to answer a clip: {answer_s:.1f} s of a CPU core, {peak_gib:.1f} GiB at the most")
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
    write_results(args.json, figures)


def pictures(model: MaxMViTForAudioClassification, clips: int) -> dict[str, torch.Tensor]:
    size = model.config.image_size
    return {f"{branch}_values": torch.randn(clips, 3, size, size) for branch in model.branches()}


@torch.no_grad()
def seconds_to_answer(model: MaxMViTForAudioClassification) -> float:
    """Median of five clips, one by one, of the time that the process had a core."""
    model.eval()
    times = []
    for _ in range(6):  # the first one warms up
        batch, start = pictures(model, 1), time.process_time()
        model(**batch)
        times.append(time.process_time() - start)
    return sorted(times[1:])[2]


def kept_bytes(model: MaxMViTForAudioClassification, clips: int, precision: torch.dtype) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass, less the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # alive, so that no address is used twice
        return tensor

    model.train()
    batch = pictures(model, clips) | {"labels": torch.arange(clips) % model.config.num_labels}
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        model(**batch)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)


if __name__ == "__main__":
    main()
