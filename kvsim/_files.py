"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvsim.errors import KvsimError

__all__ = ["atomic_file", "check_writable"]


def _beside(final: Path) -> tuple[int, str]:
    """Create an empty file next to `final`; KvsimError if that cannot be done."""
    try:
        return tempfile.mkstemp(prefix=f".{final.name[:40]}.", suffix=".part", dir=final.parent)
    except OSError as error:
        raise KvsimError(f"{final}: cannot be written: {error.strerror}, expected a writable directory") from None


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise KvsimError unless a file could be written at `path` now; leave nothing behind."""
    if not os.fspath(path):
        raise KvsimError("output: found an empty path, expected a file name")
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise KvsimError(f"{path}: is a directory, expected a file name")
    if not final.parent.is_dir():
        raise KvsimError(f"{path}: the directory {str(final.parent)!r} does not exist, expected a writable directory")
    if final.exists() and not os.access(final, os.W_OK):
        raise KvsimError(f"{path}: is write-protected, expected a writable file")
    if not _is_special(final):
        handle, name = _beside(final)
        os.close(handle)
        os.unlink(name)


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only once it is complete.

    What is written goes to a file beside `path`, which replaces it at the end. On any error, an interrupt
    included, it is removed and what was at `path` stays. A device or a pipe is written directly.

    Raises
    ------
    KvsimError
        The place cannot be written.
    """
    check_writable(path)
    final = Path(os.path.realpath(path))
    if _is_special(final):
        with final.open("wb") as direct:
            yield direct
        return
    handle, name = _beside(final)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; give what a plain open would have given
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, final.stat().st_mode & 0o777 if final.exists() else 0o666 & ~mask)
        os.replace(name, final)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
