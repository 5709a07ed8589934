"""Limits a call to one CPU thread, by OpenMP's and MKL's settings of the calling thread."""

import ctypes
from collections.abc import Callable
from contextlib import ContextDecorator
from functools import lru_cache

import torch


class one_thread(ContextDecorator):
    """Context manager and decorator: what torch computes on the CPU inside takes one thread.

    A clip is hundreds of steps of microseconds. Threads that share them wait for each other at every one, on a busy
    machine for longer than the work takes; cores are better used by processes.

    `torch.set_num_threads` is not the way: it also sets what every new thread of the process starts with, so calls
    that overlap leave that at one. The two settings under it belong to the thread that makes them: OpenMP's
    `nthreads-var` (an internal control variable of the current task) and MKL's local number of threads. They are
    restored in the thread that set them. Where torch has no OpenMP (Windows), nothing is changed.

    A decorated method holds no generator (as one of `contextlib.contextmanager` does), so that `datasets` can hash the
    feature extractor.
    """

    def _recreate_cm(self) -> "one_thread":
        return one_thread()  # each call keeps settings of its own: calls overlap

    def __enter__(self) -> None:
        set_openmp, set_mkl = _setters()
        # Also makes torch set up this thread, which it does once, when first needed, and which would undo the rest.
        self._threads = torch.get_num_threads()
        set_openmp(1)
        self._mkl_threads = set_mkl(1)

    def __exit__(self, *_: object) -> None:
        set_openmp, set_mkl = _setters()
        set_mkl(self._mkl_threads)
        set_openmp(self._threads)


@lru_cache(maxsize=1)
def _setters() -> tuple[Callable[[int], object], Callable[[int], int]]:
    """`omp_set_num_threads` and `MKL_Set_Num_Threads_Local` (which returns what was set) of the libraries that torch
    itself is linked to, or functions that do nothing."""
    library = ctypes.CDLL(torch._C.__file__)
    openmp = getattr(library, "omp_set_num_threads", None)
    mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)
    return openmp or _nothing_to_set, mkl or _nothing_to_set


def _nothing_to_set(threads: int) -> int:
    return threads
