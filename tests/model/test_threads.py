"""Tests that `one_thread` limits a call to one thread and leaves the settings of the process unchanged."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoFeatureExtractor

from feature_extraction_maxmvit import one_thread
from tests.helpers.tiny import tiny_feature_extractor, voice


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(torch.get_num_threads).result()


def test_one_thread_applies_only_inside(three_threads):
    @one_thread()
    def decorated() -> int:
        with one_thread():  # nested
            return torch.get_num_threads()

    assert decorated() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 3


def test_overlapping_calls_leave_every_thread_as_it_was(three_threads):
    """Eight threads are inside at once, one of them fails, and they leave one after the other. Threads that start
    meanwhile or afterwards have the setting of the process."""
    inside, turns = threading.Barrier(8), [threading.Event() for _ in range(9)]
    turns[0].set()

    def call(number: int) -> tuple[int, int, int]:
        before = torch.get_num_threads()  # also what a thread starts with
        try:
            with one_thread():
                inside.wait(timeout=30)
                assert in_a_new_thread() == 3
                turns[number].wait(timeout=30)
                within = torch.get_num_threads()
                if number == 5:
                    raise RuntimeError
        except RuntimeError:
            pass
        turns[number + 1].set()
        return before, within, torch.get_num_threads()

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(call, range(8))) == [(3, 1, 3)] * 8
    assert (torch.get_num_threads(), in_a_new_thread()) == (3, 3)


def test_extractors_in_eight_threads_change_no_setting(three_threads):
    extractor, y = tiny_feature_extractor(), voice(0.2)

    def call(number: int) -> int:
        for _ in range(5):
            if number % 2:
                extractor.extract(y)
            else:
                with pytest.raises(ValueError):
                    extractor.extract([float("nan")])
        return torch.get_num_threads()

    with ThreadPoolExecutor(8) as executor:
        assert set(executor.map(call, range(8))) == {3}
    assert (torch.get_num_threads(), in_a_new_thread()) == (3, 3)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="the system has no /proc/self/task")
def test_neither_openmp_nor_mkl_starts_a_thread():
    program = """
import os, sys, torch
from spectrograms_maxmvit import cqt_magnitude, mel_power
from feature_extraction_maxmvit import one_thread
torch.set_num_threads(4)
y = torch.randn(1, 200_000)
before = len(os.listdir("/proc/self/task"))
with one_thread():
    cqt_magnitude(y), mel_power(y)
after = len(os.listdir("/proc/self/task"))
cqt_magnitude(y), mel_power(y)
print(after - before, len(os.listdir("/proc/self/task")) > after)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"trim_db": 30.0}, {"channels": "deltas", "n_mels": 64}])
def test_datasets_caches_the_results_of_an_extractor_of_remote_code(changes, tmp_path):
    def computed() -> Dataset:
        extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "extractor", trust_remote_code=True)
        clips = Dataset.load_from_disk(str(tmp_path / "clips"))
        return clips.map(lambda row: extractor(voice(row["seconds"]), sampling_rate=44_100))

    tiny_feature_extractor(**changes).save_pretrained(tmp_path / "extractor")
    Dataset.from_dict({"seconds": [0.2, 0.3]}).save_to_disk(str(tmp_path / "clips"))
    first, again = computed(), computed()  # the second with a newly loaded extractor
    assert again._fingerprint == first._fingerprint
    assert [file["filename"] for file in again.cache_files] == [file["filename"] for file in first.cache_files]
    assert len(list((tmp_path / "clips").glob("cache-*.arrow"))) == 1
    expected = tiny_feature_extractor(**changes)(voice(0.3), sampling_rate=44_100)
    assert np.allclose(again[1]["mel_values"], expected["mel_values"])
