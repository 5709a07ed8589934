"""Measures the paper's model (base + base): parameters, memory of a training step, time and memory of a prediction.

    python -m benchmarks.base_model_memory [--clips 2]
    python -m benchmarks.base_model_memory --pairs all      # or some of them: --pairs gated+mlp bilinear+decoder

The tensors that a step keeps for its backward pass are counted, which needs no GPU and holds for all of them; kernels
and allocator of a GPU need some more. Weights, their gradients and the two moments of Adam and RAdam are added, in
float32 whatever the precision of the pass.

With `--pairs`, every combination of fusion and head runs the forward and backward pass of one training step in
bfloat16 with gradient checkpointing, each in its own process. The peak memory of that process includes weights and
gradients in float32, but not an optimizer's moments.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time

import torch

from benchmarks.results import add_json, write_results
from configuration_maxmvit import FUSION_NAMES, HEAD_NAMES, MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification

PAIRS = [f"{fusion}+{head}" for fusion, head in itertools.product(FUSION_NAMES, HEAD_NAMES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2, help="clips in the measured batch")
    parser.add_argument("--batch_size", type=int, default=16, help="batch size for which the total is reported")
    parser.add_argument("--pairs", nargs="+", metavar="FUSION+HEAD", help="fusions and heads to measure, or all")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON: changes to the model, for --pairs")
    parser.add_argument("--step", metavar="FUSION+HEAD", help=argparse.SUPPRESS)  # in the process of one pair
    add_json(parser)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(step(args.step, args.clips, args.config)))
        return
    if args.pairs:
        names = PAIRS if args.pairs == ["all"] else args.pairs
        write_results(args.json, {name: in_a_process(name, args.clips, args.config) for name in names})
        return
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
    write_results(args.json, figures)


def in_a_process(pair: str, clips: int, changes: dict) -> dict[str, float]:
    """Runs [`step`] in a process of its own, and prints its result."""
    command = [sys.executable, "-m", "benchmarks.base_model_memory", "--step", pair, "--clips", str(clips)]
    command += ["--config", json.dumps(changes)]
    taken = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
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


if __name__ == "__main__":
    main()
