"""Two tests run at a time (see pyproject.toml), so each has one thread; and none of them needs the network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
