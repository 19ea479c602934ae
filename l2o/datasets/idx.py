"""Labelled images on disk in MNIST's own layout: IDX files in a folder, plain or gzipped.

An IDX file is a big-endian int32 magic number (0x0800 plus the number of dimensions), an int32
for each dimension, then the bytes (http://yann.lecun.com/exdb/mnist).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from l2o.datasets.files import find, open_file, write_folder

NUM_CLASSES = 10
SIDE = 28

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class LabelledImages(NamedTuple):
    """Images as they are on disk.

    Attributes:
        images: Pixels, shape (images, 28, 28) or as the layout says, uint8.
        labels: Class indices, shape (images,), uint8.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Layout:
    """What a folder of images holds.

    Attributes:
        files: Names of the files of images and of labels, by split.
        shape: Shape of an image.
        num_classes: Number of classes; labels are below it.
        datasets: Names of the data sets in this layout.
    """

    files: Mapping[str, tuple[str, str]]
    shape: tuple[int, ...]
    num_classes: int
    datasets: tuple[str, ...]

    @property
    def size(self) -> str:
        """The shape of an image in words, such as 28x28."""
        return "x".join(map(str, self.shape))


MNIST = Layout(FILES, (SIDE, SIDE), NUM_CLASSES, ("mnist", "fashion_mnist"))
"""Layout of MNIST and Fashion-MNIST, which knows no validation images."""


def read_images(folder: str | Path, layout: Layout = MNIST) -> dict[str, LabelledImages]:
    """Read the images of each split in a folder of IDX files, plain or gzipped.

    Raises:
        ValueError: If a file is missing, truncated or not what its name says.
    """
    folder = Path(folder).expanduser()
    splits = {}
    for split, (images_file, labels_file) in layout.files.items():
        images = _read_idx(folder, images_file, 1 + len(layout.shape), layout)
        labels = _read_idx(folder, labels_file, 1, layout)
        problem = None
        if images.shape[1:] != layout.shape:
            problem = f"{images_file} with images of {'x'.join(map(str, images.shape[1:]))}"
        elif len(images) != len(labels) or not len(labels):
            problem = f"{len(images)} images and {len(labels)} labels for {split}"
        elif labels.max() >= layout.num_classes:
            problem = f"{labels_file} with label {labels.max()}"
        if problem:
            raise ValueError(
                f"`folder` {folder} must hold {layout.size} images with a label below "
                f"{layout.num_classes} each; got {problem}. {_hint(folder, layout)}"
            )
        splits[split] = LabelledImages(images, labels)
    return splits


def image_files(splits: Mapping[str, LabelledImages], layout: Layout = MNIST) -> dict[str, bytes]:
    """Contents of the IDX files of a layout, by name."""
    contents = {}
    for split, names in layout.files.items():
        for name, array in zip(names, splits[split], strict=True):
            header = np.array([0x0800 + array.ndim, *array.shape], ">i4")
            contents[name] = header.tobytes() + array.astype(np.uint8).tobytes()
    return contents


def write_images(
    folder: Path,
    splits: Mapping[str, LabelledImages],
    about: Mapping[str, object],
    layout: Layout = MNIST,
) -> None:
    """Write IDX files and `SOURCE.json` to a new folder, and wait until they are on disk."""
    write_folder(folder, image_files(splits, layout), about)


def stratified_split(
    classes: Sequence[np.ndarray], held_out: Mapping[str, int | float], *, seed: int
) -> dict[str, LabelledImages]:
    """Split images by class into "train" and others, and shuffle each.

    Args:
        classes: Images of each class, in the order of labels.
        held_out: Number, or below 1 the share, of the images of each class, by split.
        seed: Seed of what is drawn and of the order.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[LabelledImages]] = {"train": [], **{split: [] for split in held_out}}
    for label, images in enumerate(classes):
        order = rng.permutation(len(images))
        for split, number in held_out.items():
            number = round(number * len(images)) if number < 1 else int(number)
            rows, order = order[:number], order[number:]
            parts[split].append(_labelled(images[rows], label))
        parts["train"].append(_labelled(images[order], label))
    splits = {}
    for split, part in parts.items():
        images, labels = (np.concatenate(arrays) for arrays in zip(*part, strict=True))
        order = rng.permutation(len(labels))
        splits[split] = LabelledImages(images[order], labels[order])
    return splits


def _labelled(images: np.ndarray, label: int) -> LabelledImages:
    return LabelledImages(images, np.full(len(images), label, dtype=np.uint8))


def _hint(folder: Path, layout: Layout) -> str:
    first, *others = layout.datasets
    named = [name for name in others if name.split("_")[0] in folder.name]
    return f"Try `l2o data fetch {(named or [first])[0]}`."


def _read_idx(folder: Path, name: str, num_dims: int, layout: Layout) -> np.ndarray:
    hint = _hint(folder, layout)
    path = find(folder, name)
    if path is None:
        raise ValueError(f"`folder` {folder} must hold {name} or {name}.gz; got neither. {hint}")
    try:
        with open_file(path) as file:
            header = np.frombuffer(file.read(4 * (1 + num_dims)), ">u4")
            magic = int(header[0]) if header.size else None
            if magic is not None and magic != 0x0800 + num_dims:
                raise ValueError(
                    f"`folder` {folder} must hold {path.name} in IDX format, magic number "
                    f"{0x0800 + num_dims}; got {magic}. {hint}"
                )
            shape = tuple(int(n) for n in header[1:])
            size = int(np.prod(shape, dtype=object))
            content = file.read() if len(shape) == num_dims else b""
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if str(error).startswith("`folder`"):
            raise
        raise ValueError(
            f"`folder` {folder} must hold a whole {path.name}; got a broken one ({error}). {hint}"
        ) from error
    if len(shape) != num_dims or len(content) != size:
        raise ValueError(
            f"`folder` {folder} must hold a whole {path.name}; got {len(content)} bytes of "
            f"content where its header announces {size}. {hint}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
