"""Files that are whole or absent, a power failure notwithstanding, and the versions that stand in them."""

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
def whole(path: str | Path) -> Iterator[Path]:
    """A name to write under; renamed to `path` once all is written, and is on the disk."""
    path = Path(path)
    # Random: containers that share a folder often share the number of their process too.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """
    Checks, before any work is done, that a file can be written under a name; folders above it that are not there yet
    are taken to be made later.

    Raises:
        UsageError: It cannot; says why.
    """
    path = Path(path).absolute()
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place = next(parent for parent in path.parents if parent.exists())
        # What is written has longer names until it is whole.
        name = path.name if place == path.parent else ""
        NamedTemporaryFile(dir=place, prefix=f".{name}.", suffix=".unfinished").close()
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def sync(path: str | Path) -> None:
    """Waits until what was written to a file, or which names a folder holds, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: object) -> None:
    """JSON that any parser reads: no NaN, numpy numbers as plain ones."""
    with whole(path) as unfinished:
        unfinished.write_text(_to_json(content) + "\n", encoding="utf-8")


def as_json(content: object) -> Any:
    """What [`write_json`] would write of it, read again: lists for tuples, texts for the keys of a dict."""
    return json.loads(_to_json(content))


def _to_json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide over results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


PACKAGES = ("torch", "transformers", "timm", "datasets", "accelerate", "librosa", "numpy", "scikit-learn")
