"""Two tests run at a time (see pyproject.toml), so each has one thread; and none of them needs the network."""

import os

from ser.environment import wait_passively

wait_passively()  # as the commands do, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
