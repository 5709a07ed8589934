"""Settings and fixtures of all tests. Three tests run at a time, each with one thread; none needs the network."""

import gc
import os
import sys
from pathlib import Path

# Without bytecode (a common setting in containers) each process that a test starts would compile torch, transformers
# and their dependencies again, which takes longer than most tests. Bytecode is kept in a folder that git ignores.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).parents[1] / ".cache" / "pycache"))
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]

import pytest  # noqa: E402

from ser.utils import wait_passively  # noqa: E402

wait_passively()  # as the commands do, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module", autouse=True)
def _frozen_modules() -> None:
    """Leaves the objects of imported modules out of garbage collection, which accelerate runs at every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def encoders(tmp_path_factory) -> dict[str, str]:
    """Returns the folder of a tiny speech encoder for each supported family."""
    import torch  # only now, after the settings above

    from configuration_maxmvit import FAMILIES
    from tests.helpers.tiny import tiny_speech_encoder

    torch.manual_seed(0)
    return {family: tiny_speech_encoder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory) -> Path:
    """Writes a small demo corpus: six voices with two clips of each emotion."""
    from ser.data.corpora.demo import write_demo_corpus

    folder = tmp_path_factory.mktemp("demo_corpus") / "demo"
    write_demo_corpus(folder, n_voices=6, clips_per_emotion=2)
    return folder


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("feature_cache")


@pytest.fixture(scope="session")
def streamed_shards(tmp_path_factory) -> Path:
    """Writes 46 very short clips as parquet files; returns their folder."""
    from tests.helpers.streaming import write_shards

    return write_shards(tmp_path_factory.mktemp("shards"), 46)


@pytest.fixture(scope="session")
def streamed_corpus(streamed_shards, tmp_path_factory):
    """Returns the corpus of `streamed_shards`, loaded for streaming."""
    from ser.data.corpora.loading import load_corpus

    return load_corpus(str(streamed_shards), cache_dir=str(tmp_path_factory.mktemp("cache")), streaming=True)


@pytest.fixture(scope="session")
def trained_demo(tmp_path_factory) -> Path:
    """Runs the unchanged demo recipe once for all workers; returns its output folder, beside which is its `cache`."""
    from filelock import FileLock

    from tests.helpers.commands import ROOT, main

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with FileLock(folder / "demo.lock"):
        if not (folder / "demo" / "metrics.json").exists():
            recipe = str(ROOT / "configs" / "demo.yaml")
            main([recipe, f"--cache_dir={folder / 'cache'}", "--report_to=none", f"--output_dir={folder / 'demo'}"])
    return folder / "demo"
