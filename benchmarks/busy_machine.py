"""Measures steps per second of the demo's model with and without the OpenMP settings of the commands, on an idle
machine and beside busy processes.

    python -m benchmarks.busy_machine

Each figure is the median of several processes, alternately with and without the settings. Run it on an otherwise idle
machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.results import add_json, write_results

RECIPE = Path(__file__).parent.parent / "configs" / "demo.yaml"
PASSIVELY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
OURS, UNSET = "with the commands' settings", "without"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="training time of each process, at least one step")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each figure")
    parser.add_argument("--busy", type=int, default=1, help="number of busy processes beside the training")
    parser.add_argument("--only_train", action="store_true", help="train here, and print steps per second")
    add_json(parser)
    args = parser.parse_args()
    if args.only_train:
        print(steps_per_second(args.seconds))
        return
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
    write_results(args.json, {"steps_per_second": figures, "load_before": os.getloadavg()[0]})


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
    command = [sys.executable, "-m", "benchmarks.busy_machine", "--only_train", "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment | settings, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def steps_per_second(seconds: float) -> float:
    """Trains the demo's model repeatedly on one batch, after two steps to warm up; returns the steps per second."""
    import torch  # after the environment of OpenMP has been set

    from ser.models import make_config, make_model, name_classes
    from ser.training.run import parse_arguments

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


if __name__ == "__main__":
    main()
