"""Labelled images on disk in MNIST's own layout: four IDX files in a folder, plain or gzipped.

An IDX file is a big-endian int32 magic number (0x0800 plus the number of dimensions), an int32
for each dimension, then the bytes (http://yann.lecun.com/exdb/mnist).
"""

import gzip
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

NUM_CLASSES = 10
SIDE = 28

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class LabelledImages(NamedTuple):
    """Images as they are on disk.

    Attributes:
        images: Pixels, shape (images, 28, 28), uint8.
        labels: Class indices below 10, shape (images,), uint8.
    """

    images: np.ndarray
    labels: np.ndarray


def read_images(folder: str | Path) -> dict[str, LabelledImages]:
    """Read the "train" and "test" images in a folder of IDX files, plain or gzipped.

    Raises:
        ValueError: If a file is missing, truncated or not what its name says.
    """
    folder = Path(folder).expanduser()
    splits = {}
    for split, (images_file, labels_file) in FILES.items():
        images = _read_idx(folder, images_file, num_dims=3)
        labels = _read_idx(folder, labels_file, num_dims=1)
        problem = None
        if images.shape[1:] != (SIDE, SIDE):
            problem = f"{images_file} with images of {images.shape[1]}x{images.shape[2]}"
        elif len(images) != len(labels) or not len(labels):
            problem = f"{len(images)} images and {len(labels)} labels for {split}"
        elif labels.max() >= NUM_CLASSES:
            problem = f"{labels_file} with label {labels.max()}"
        if problem:
            raise ValueError(
                f"`folder` {folder} must hold {SIDE}x{SIDE} images with a label below "
                f"{NUM_CLASSES} each; got {problem}. {_hint(folder)}"
            )
        splits[split] = LabelledImages(images, labels)
    return splits


def write_images(
    folder: Path, splits: Mapping[str, LabelledImages], about: Mapping[str, object]
) -> None:
    """Write IDX files and `SOURCE.json` to a new folder, and wait until they are on disk."""
    folder.mkdir(parents=True)
    contents = {"SOURCE.json": (json.dumps(about, indent=2) + "\n").encode()}
    for split, names in FILES.items():
        for name, array in zip(names, splits[split], strict=True):
            header = np.array([0x0800 + array.ndim, *array.shape], ">i4")
            contents[name] = header.tobytes() + array.astype(np.uint8).tobytes()
    for name, content in contents.items():
        with open(folder / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def is_present(folder: Path) -> bool:
    """Tell whether all four files are there, whole or not."""
    return all(_find(folder, name) is not None for names in FILES.values() for name in names)


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _hint(folder: Path) -> str:
    name = "fashion_mnist" if "fashion" in folder.name else "mnist"
    return f"Try `l2o data fetch {name}`."


def _read_idx(folder: Path, name: str, num_dims: int) -> np.ndarray:
    path = _find(folder, name)
    if path is None:
        raise ValueError(
            f"`folder` {folder} must hold {name} or {name}.gz; got neither. {_hint(folder)}"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = np.frombuffer(file.read(4 * (1 + num_dims)), ">u4")
            magic = int(header[0]) if header.size else None
            if magic is not None and magic != 0x0800 + num_dims:
                raise ValueError(
                    f"`folder` {folder} must hold {path.name} in IDX format, magic number "
                    f"{0x0800 + num_dims}; got {magic}. {_hint(folder)}"
                )
            shape = tuple(int(n) for n in header[1:])
            size = int(np.prod(shape, dtype=object))
            content = file.read() if len(shape) == num_dims else b""
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if str(error).startswith("`folder`"):
            raise
        raise ValueError(
            f"`folder` {folder} must hold a whole {path.name}; got a broken one "
            f"({error}). {_hint(folder)}"
        ) from error
    if len(shape) != num_dims or len(content) != size:
        raise ValueError(
            f"`folder` {folder} must hold a whole {path.name}; got {len(content)} bytes of "
            f"content where its header announces {size}. {_hint(folder)}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
