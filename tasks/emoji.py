"""Conv nets and residual networks on emoji in colour; `l2o data fetch emoji` first.

The drawings of 32x32 pixels are halved to 16x16; `l2o.datasets.emoji` says what they are.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from l2o import Split, TaskFamily
from l2o.datasets.emoji import EMOJI
from l2o.datasets.fetch import SOURCES, dataset_folder
from l2o.datasets.idx import LabelledImages, read_images
from l2o.tasks.image_mlp import Images
from l2o.tasks.images import convolutional, residual

COLOURS = 3


def halved(part: LabelledImages) -> Images:
    """Means of 2x2 pixels, from 0 to 1, flat with colours last, and labels."""
    images, height, width, colours = part.images.shape
    blocks = part.images.reshape(images, height // 2, 2, width // 2, 2, colours)
    pixels = blocks.mean((2, 4), dtype=np.float32) / np.float32(255)
    return Images(pixels.reshape(images, -1), part.labels.astype(np.int32))


@functools.lru_cache(maxsize=1)
def _images(folder: Path) -> Mapping[Split, Images]:
    splits: tuple[Split, ...] = ("train", "valid", "test")
    found = read_images(folder, EMOJI)
    return {split: halved(found[split]) for split in splits}


def _on_emoji(family: TaskFamily) -> TaskFamily:
    source = SOURCES["emoji"]
    return replace(
        family,
        source=f"emoji, 16x16, npm {source.package}, sha256 {source.sha256[:12]}",
        licence=source.licence,
    )


def emoji_conv() -> TaskFamily:
    """Conv nets on emoji at 16 pixels in colour; `l2o data fetch emoji` first."""
    data = _images(dataset_folder("emoji"))
    return _on_emoji(convolutional("emoji_conv", data, colours=COLOURS))


def emoji_resnet() -> TaskFamily:
    """Residual networks on emoji at 16 pixels in colour; `l2o data fetch emoji` first."""
    data = _images(dataset_folder("emoji"))
    return _on_emoji(residual("emoji_resnet", data, colours=COLOURS))
