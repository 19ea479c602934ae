"""Emoji in colour: 1,892 drawings of 32x32 pixels in nine classes, of 85 to 381 each.

They are Google's drawings in npm's `emoji-datasource-google`, without variants of skin tone: 1,906,
of which 14 repeat another. Many differ little, such as a man's and a woman's of one profession, and
may lie in different splits. The class is the category that Unicode puts an emoji in.
"""

import io
import json
import tarfile

import numpy as np

from l2o.datasets.files import read_member
from l2o.datasets.idx import Layout, image_files, stratified_split

CLASSES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
"""Classes in the order of their labels."""

EMOJI = Layout(
    {
        split: (f"{split}-images-idx4-ubyte", f"{split}-labels-idx1-ubyte")
        for split in ("train", "valid", "test")
    },
    (32, 32, 3),
    len(CLASSES),
    ("emoji",),
)
"""Layout of the emoji: MNIST's, with a dimension for colours, and with validation images."""

HELD_OUT = {"valid": 0.1, "test": 0.2}
"""Share of each class in the validation and in the test split."""

SPLIT_SEED = 0


def convert_emoji(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Contents of the IDX files, out of npm's package.

    Of 64x64 pixels with an alpha channel the means of 2x2 over white are taken. Of drawings that
    are alike in each pixel, such as some countries' flags, the first stays, so that none lies
    in two splits. Splits are drawn by `stratified_split`: the package has none.
    """
    classes: list[list[np.ndarray]] = [[] for _ in CLASSES]
    kept = set()
    for emoji in json.loads(read_member(tar, "package/emoji.json")):
        if emoji["category"] not in CLASSES:  # parts of emoji: skin tones
            continue
        image = _small(read_member(tar, f"package/img/google/64/{emoji['image']}"))
        if image.tobytes() not in kept:
            kept.add(image.tobytes())
            classes[CLASSES.index(emoji["category"])].append(image)
    images = [np.stack(images) for images in classes]
    return image_files(stratified_split(images, HELD_OUT, seed=SPLIT_SEED), EMOJI)


def _small(png: bytes) -> np.ndarray:
    """A drawing over white at half its size, shape (32, 32, 3), uint8."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGBA"), np.float64)
    alpha = pixels[..., 3:] / 255.0
    over_white = alpha * pixels[..., :3] + (1.0 - alpha) * 255.0
    height, width, channels = over_white.shape
    blocks = over_white.reshape(height // 2, 2, width // 2, 2, channels)
    return np.round(blocks.mean((1, 3))).astype(np.uint8)
