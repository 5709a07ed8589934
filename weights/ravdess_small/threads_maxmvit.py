"""One thread for a call, and for nothing else: OpenMP's and MKL's settings of the calling thread."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """What torch computes on the CPU inside takes one thread; works as a decorator too.

    A clip is hundreds of steps of microseconds. Threads that share them wait for each other at every one, on a busy
    machine for longer than the work takes; cores are better used by processes.

    `torch.set_num_threads` is not the way: it also sets what every new thread of the process starts with, so calls
    that overlap leave that at one. The two settings under it belong to the thread that makes them: OpenMP's
    `nthreads-var` (an internal control variable of the current task) and MKL's local number of threads. No other
    thread sees them, and they are put back in the thread that set them. Where torch has no OpenMP (Windows), nothing
    is changed.
    """
    set_openmp, set_mkl = _setters()
    # Also makes torch set up this thread, which it does once, at the first need, and which would undo what follows.
    threads = torch.get_num_threads()
    set_openmp(1)
    mkl_threads = set_mkl(1)
    try:
        yield
    finally:
        set_mkl(mkl_threads)
        set_openmp(threads)


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
