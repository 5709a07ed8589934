"""Two tests run at a time (see pyproject.toml), so each has one thread; and none of them needs the network."""

import os

import pytest

from ser.utils import wait_passively

wait_passively()  # as the commands do, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> dict[str, str]:
    """A folder with a tiny speech encoder of each family that can be joined."""
    import torch  # which the settings above come before

    from configuration_maxmvit import FAMILIES
    from tests.helpers.tiny import tiny_speech_encoder

    torch.manual_seed(0)
    return {family: tiny_speech_encoder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
