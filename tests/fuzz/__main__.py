"""Runs many cases: `python -m tests.fuzz --cases 10000`. Saves failed cases as files and then exits with 1."""

import argparse
import faulthandler
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets  # noqa: E402

from tests.fuzz.checkpoints import checkpoints, expected_scores  # noqa: E402
from tests.fuzz.kinds import KINDS, Case, make_case  # noqa: E402
from tests.fuzz.mutations import valid_files  # noqa: E402
from tests.fuzz.watch import Outcome, watched  # noqa: E402

KEPT = Path(__file__).parent / "cases"
LAST = Path(tempfile.gettempdir()) / "fuzz-last"  # the current case, in case the process crashes
DEADLY_S = 120  # for code that cannot be interrupted; the process then ends with a traceback


def warm_up() -> None:
    """Triggers imports and caching on first use, whose time and written files would be attributed to a case."""
    datasets.disable_progress_bars()
    sound = valid_files()["wav-pcm_16-1"]
    clips = {"data/up/a.wav": sound, "data/down/b.wav": sound}
    for case in (
        Case("pipeline", {"a.wav": sound}),
        Case("corpus", clips, {"name": "data"}),
        Case("arguments", {}, {"flags": ["--output_dir", "out"]}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            case.write(Path(folder))
            assert KINDS()[case.kind].run(case, Path(folder)) == "accepted"
    for name in checkpoints():
        expected_scores(name)
        with tempfile.TemporaryDirectory() as folder:
            refused = Case("checkpoint", {"config.json": b"[]"}, {"of": name, "changed": []})
            refused.write(Path(folder))
            assert KINDS()["checkpoint"].run(refused, Path(folder)) == "UsageError"


def run_case(case: Case) -> Outcome:
    """Runs a case in a new folder."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        case.write(folder)
        return watched(lambda: KINDS()[case.kind].run(case, folder), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default 0)")
    parser.add_argument("--only", type=int, help="run only the case with this number")
    parser.add_argument("--kind", choices=list(KINDS()), help="run only cases of this kind")
    parser.add_argument("--json", help="file for the statistics")
    args = parser.parse_args()
    warm_up()
    ends, slowest, largest, n_failed = Counter(), (0.0, ""), (0.0, ""), 0
    for number in range(args.cases) if args.only is None else [args.only]:
        case = make_case(args.seed, number)
        if args.kind not in (None, case.kind):
            continue
        LAST.write_text(f"--seed {args.seed} --only {number}\n")
        faulthandler.dump_traceback_later(DEADLY_S, exit=True)
        outcome = run_case(case)
        faulthandler.cancel_dump_traceback_later()
        ends[f"{case.kind}: {outcome.end}"] += 1
        where = f"{case.kind}, --seed {args.seed} --only {number}"
        slowest, largest = max(slowest, (outcome.seconds, where)), max(largest, (outcome.mib, where))
        if outcome.failed:
            n_failed += 1
            kept = KEPT / f"{case.kind}-{args.seed}-{number}.json"
            kept.write_text(case.to_json())
            print(f"FAILED {where}: {outcome.end}: {outcome.message[:500]}\n  kept as {kept}", flush=True)
            if outcome.where is not None and args.only is not None:
                traceback.print_tb(outcome.where)
        if number % 500 == 499:
            print(
                f"{number + 1:,} cases, {n_failed} failed; {slowest[0]:.2f} s and {largest[0]:.0f} MiB at most",
                flush=True,
            )
    for end, count in sorted(ends.items()):
        print(f"{count:7,}  {end}")
    print(f"{sum(ends.values()):,} cases, {n_failed} failed.")
    print(f"Longest: {slowest[0]:.2f} s ({slowest[1]}). Most memory: {largest[0]:.0f} MiB ({largest[1]}).")
    if args.json:
        figures = {"cases": sum(ends.values()), "failed": n_failed, "ends": ends, "s": slowest, "mib": largest}
        Path(args.json).write_text(json.dumps(figures, indent=2))
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
