"""A disk that is full, as a process sees it."""

import contextlib
import resource


@contextlib.contextmanager
def file_size_limit(num_bytes: int):
    """Makes this process's writes beyond a size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
