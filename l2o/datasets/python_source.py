"""The source of Python's standard library: 8 to 9 MB of text that is there wherever Python is.

It is what `sysconfig.get_paths()["stdlib"]` holds in `*.py` files, without tests, IDLE, 2to3,
what is no library (`site-packages`), what is tables or data (`encodings`, `pydoc_data`) and how
the interpreter was built (`_sysconfigdata*`, `config-*`). A file belongs to a split by the sha256
of its path, modulo 10: 0 is test, 1 is validation, the rest train.

It changes with Python's version, and with who packaged it: Python 3.11.7 has 8,854,937 bytes in 475
files, 3.13.0 has 8,407,527 in 444. Losses on it are comparable where `python_source_sha256` is the
same.
"""

import functools
import hashlib
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import numpy as np

LEFT_OUT = frozenset(
    {
        "dist-packages",
        "encodings",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    }
)
"""Folders that do not count."""


def source_folder() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, sorted by their paths."""
    splits: dict[str, list[Path]] = {"train": [], "valid": [], "test": []}
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in LEFT_OUT and not f.startswith("config-")]
        kept = [n for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata")]
        paths += [Path(parent, name).relative_to(folder) for name in kept]
    for path in sorted(paths):
        splits[split_of(path)].append(folder / path)
    return splits


def split_of(path: Path) -> str:
    """The split of a file, by its path below the folder of the standard library."""
    digest = hashlib.sha256(path.as_posix().encode()).hexdigest()
    return {0: "test", 1: "valid"}.get(int(digest, 16) % 10, "train")


@functools.cache
def python_source() -> Mapping[str, np.ndarray]:
    """Bytes of each split, its files one after the other, shape (bytes,), uint8; read once.

    Raises:
        ValueError: If the standard library is not there as source.
    """
    splits = {}
    for split, paths in source_files(source_folder()).items():
        splits[split] = np.frombuffer(b"".join(path.read_bytes() for path in paths), np.uint8)
        if not len(splits[split]):
            raise ValueError(
                f"`folder` {source_folder()} must hold the standard library as *.py files; got "
                f"none for {split}. Try a Python that was installed with its source."
            )
    return splits


@functools.cache
def python_source_sha256() -> str:
    """The sha256 of the train, validation and test bytes, one after the other."""
    digest = hashlib.sha256()
    for content in python_source().values():
        digest.update(content.tobytes())
    return digest.hexdigest()
