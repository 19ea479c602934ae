"""Locks on files, which the system releases when their process ends, however it ends."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


def try_lock(path: Path) -> BinaryIO | None:
    """Lock a file, which is made if there is none; close what is returned to release it.

    Returns:
        The open file, or None if it is locked, by this process or another, on any machine that
        shares the file system.

    Raises:
        OSError: If the file system cannot lock.
    """
    return _lock(path, is_patient=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file and hold it inside of the context.

    Raises:
        OSError: If the file system cannot lock.
    """
    file = _lock(path, is_patient=True)
    assert file is not None
    with file:
        yield


def _lock(path: Path, *, is_patient: bool) -> BinaryIO | None:
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has no flock")
    file = open(path, "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
    except OSError as error:
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return file
