"""Emoji out of a package that the tests write."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from small_packages import deliver

from l2o.datasets import emoji, fetch
from l2o.datasets.idx import read_images


def png(red, alpha=255, mode="RGBA"):
    pixels = np.full((64, 64, 4), [red, 0, 0, alpha], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def small_package(per_class=10, others=()):
    """Drawings whose red tells class and number, and a skin tone, which is no emoji."""
    listed = [("Component", "tone.png", png(255))]
    for label, name in enumerate(emoji.CLASSES):
        listed += [(name, f"{label}-{i}.png", png(25 * label + i)) for i in range(per_class)]
    listed += others
    names = [{"category": category, "image": file} for category, file, _ in listed]
    drawings = {f"package/img/google/64/{file}": content for _, file, content in listed}
    return {"package/emoji.json": json.dumps(names).encode(), **drawings}


def reds(splits):
    return {split: part.images[:, 0, 0, 0].tolist() for split, part in splits.items()}


def test_each_drawing_is_in_one_split_with_its_class(cache, monkeypatch):
    repeated = [("Flags", "again.png", png(0)), ("Symbols", "again-2.png", png(7 * 25 + 3))]
    deliver(monkeypatch, "emoji", small_package(others=repeated))
    folder = fetch.fetch("emoji")
    splits = read_images(folder, emoji.EMOJI)
    for split, (number, of_each) in {"train": (63, 7), "valid": (9, 1), "test": (18, 2)}.items():
        part = splits[split]
        assert part.images.shape == (number, 32, 32, 3)
        assert np.bincount(part.labels).tolist() == [of_each] * 9
        np.testing.assert_array_equal(part.images[:, 0, 0, 0] // 25, part.labels)
    assert sorted(red for part in reds(splits).values() for red in part) == sorted(
        25 * label + i for label in range(9) for i in range(10)
    )
    assert splits["train"].labels.tolist() != sorted(splits["train"].labels)
    deliver(monkeypatch, "emoji", small_package(others=repeated))
    (folder / "test-images-idx4-ubyte").unlink()
    assert reds(read_images(fetch.fetch("emoji"), emoji.EMOJI)) == reds(splits)


def test_drawings_are_halved_over_white():
    half = emoji._small(png(100, alpha=51))
    assert half.dtype == np.uint8 and half.shape == (32, 32, 3)
    assert half[5, 5].tolist() == [224, 204, 204]
    assert emoji._small(png(90, mode="P"))[0, 0].tolist() == [90, 0, 0]
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[0, 1, 1] = pixels[1, 0, 1] = 101
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    small = emoji._small(file.getvalue())
    assert small[0, 0].tolist() == [0, 50, 0] and not small[1:].any()


def test_an_image_that_is_missing_or_a_label_too_large_is_told(cache, monkeypatch):
    package = small_package()
    del package["package/img/google/64/3-1.png"]
    deliver(monkeypatch, "emoji", package)
    with pytest.raises(ValueError, match=r"`npm` must deliver a package with .*3-1.png; got one"):
        fetch.fetch("emoji")
    assert list(cache.iterdir()) == []
    deliver(monkeypatch, "emoji", small_package())
    folder = fetch.fetch("emoji")
    labels = (folder / "valid-labels-idx1-ubyte").read_bytes()
    (folder / "valid-labels-idx1-ubyte").write_bytes(labels[:-1] + b"\x09")
    with pytest.raises(ValueError) as caught:
        read_images(folder, emoji.EMOJI)
    message = str(caught.value)
    assert "must hold 32x32x3 images with a label below 9 each; got valid-labels" in message
    assert message.endswith("Try `l2o data fetch emoji`.")
