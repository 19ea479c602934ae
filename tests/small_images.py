"""Small images on disk, and an empty cache of data sets."""

import numpy as np
import pytest

from l2o.datasets.idx import LabelledImages, write_images
from l2o.tasks import mnist

COUNTS = {"train": 60, "test": 20}


def small_images() -> dict[str, LabelledImages]:
    rng = np.random.default_rng(0)
    splits = {}
    for split, rows in COUNTS.items():
        images = rng.integers(0, 256, (rows, 28, 28)).astype(np.uint8)
        images[:, 0, 0] = np.arange(rows)  # which row this is
        splits[split] = LabelledImages(images, (np.arange(rows) % 10).astype(np.uint8))
    return splits


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "mnist", small_images(), {"name": "mnist"})
    return tmp_path / "mnist"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    mnist._images.cache_clear()
    return tmp_path


def same(found, expected):
    return all(
        np.array_equal(found[split].images, expected[split].images)
        and np.array_equal(found[split].labels, expected[split].labels)
        for split in COUNTS
    )
