"""Starts processes forked from one that has imported the project, since the import takes longer than most tests."""

import multiprocessing
import multiprocessing.connection
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ser.commands.predict", "ser.inference.predictions", "tests.helpers.training"])


def _call(environment: dict[str, str], target: Callable[..., Any], arguments: tuple) -> None:
    os.environ.clear()  # inherited from the server, which may have started with other variables
    os.environ.update(environment)
    target(*arguments)


def start(target: Callable[..., Any], *arguments: Any, **environment: str) -> ForkServerProcess:
    """Starts a process that calls a module-level function, with variables added to those of this process."""
    process = SERVER.Process(target=_call, args=({**os.environ, **environment}, target, arguments))
    process.start()
    return process


def start_group(count: int, target: Callable[..., Any], *arguments: Any) -> list[ForkServerProcess]:
    """Starts a process group on the CPU, with the variables that `accelerate launch` sets."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [start(target, *arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


def exit_codes(processes: list[ForkServerProcess], timeout: float = 300) -> list[int | None]:
    """
    Waits until all processes have ended or one of them has failed; in that case, kills the others.

    Returns:
        The exit codes; for a process that was ended by a signal, the negative number of the signal.
    """
    try:
        running = list(processes)
        while running and not any(process.exitcode for process in processes):
            multiprocessing.connection.wait([process.sentinel for process in running], timeout)
            ended = [process for process in running if process.exitcode is not None]
            assert ended, f"The processes have not ended within {timeout} seconds."
            running = [process for process in running if process not in ended]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.join()
    return [process.exitcode for process in processes]
