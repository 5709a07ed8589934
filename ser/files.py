"""Writes files atomically and JSON strictly, and lists the versions of packages for reports."""

import errno
import json
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from ser.utils import UsageError


@contextmanager
def atomic_write(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary name to write to, and renames it to `path` once everything is written and on the disk.

    Even after a power failure, the file is therefore either complete or absent. If not `durable`, the function
    does not wait for the disk, which takes milliseconds; the reader must then check the content of the file.
    """
    path = Path(path)
    # A random name, since processes in containers that share a folder often have the same process ID.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        yield unfinished
        if durable:
            sync(unfinished)
        os.replace(unfinished, path)
        if durable:
            sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """
    Checks, before any work is done, that a file can be written. Missing folders above it are assumed to be made later.

    Raises:
        UsageError: It cannot be written; the message gives the reason.
    """
    path = Path(path).absolute()
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place = next(parent for parent in path.parents if parent.exists())
        # The temporary name is longer than the file's own.
        name = path.name if place == path.parent else ""
        NamedTemporaryFile(dir=place, prefix=f".{name}.", suffix=".unfinished").close()
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def sync(path: str | Path) -> None:
    """Waits until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: object) -> None:
    """Writes strict JSON: NaN is refused, and numpy numbers become plain ones."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(_to_json(content) + "\n", encoding="utf-8")


def as_json(content: object) -> Any:
    """Returns the content as it is after [`write_json`] and reading: tuples become lists, and keys strings."""
    return json.loads(_to_json(content))


def _to_json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


PACKAGES = ("torch", "transformers", "timm", "datasets", "accelerate", "librosa", "numpy", "scikit-learn")
