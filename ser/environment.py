"""What a command tells OpenMP before torch is imported. Imports no other module."""

import os


def wait_passively() -> None:
    """
    Has OpenMP's threads sleep at a barrier instead of spinning on a core that the one they wait for may need: beside
    one busy process a step of training is 1.6 times as fast, beside eight 2.9 times. On an idle machine the demo's
    tiny model, whose steps are hundreds of barriers, loses 2 to 16 % by it (`python -m benchmarks.busy_machine`). What
    the user has set is left as it is.
    """
    if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
