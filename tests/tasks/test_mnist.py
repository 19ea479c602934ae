"""Images at all sizes, and their splits."""

import numpy as np
import pytest
from small_images import small_images

from l2o.datasets.idx import read_images, write_images
from l2o.tasks import mnist


def test_area_average():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    np.testing.assert_array_equal(mnist.area_average(images, 28), images)
    blocks = images.reshape(3, 14, 2, 14, 2).mean((2, 4))
    np.testing.assert_allclose(mnist.area_average(images, 14), blocks, rtol=1e-6)
    small = mnist.area_average(images, 8)
    assert small.shape == (3, 8, 8) and small.dtype == np.float32
    fine = images.repeat(2, 1).repeat(2, 2).reshape(3, 8, 7, 8, 7).mean((2, 4))
    np.testing.assert_allclose(small, fine, rtol=1e-5)


def test_rows_of_the_splits(folder):
    """By pixels: validation rows come out of the training file, and test rows stay."""
    splits = mnist.split_images(read_images(folder), 28, num_valid=12)
    on_disk = small_images()
    rows = {}
    for split, part in splits.items():
        source = on_disk["test" if split == "test" else "train"]
        rows[split] = np.round(np.asarray(part.pixels)[:, 0] * 255).astype(int)
        np.testing.assert_allclose(
            part.pixels, source.images[rows[split]].reshape(-1, 784) / 255.0, rtol=1e-6
        )
        np.testing.assert_array_equal(part.labels, source.labels[rows[split]])
    assert (len(rows["train"]), len(rows["valid"])) == (48, 12)
    assert sorted([*rows["train"], *rows["valid"]]) == list(range(60))
    assert rows["test"].tolist() == list(range(20))
    assert rows["valid"].tolist() != list(range(48, 60))  # shuffled first
    again = mnist.split_images(read_images(folder), 28, num_valid=12)
    np.testing.assert_array_equal(again["valid"].pixels, splits["valid"].pixels)


def test_more_validation_rows_than_images(folder):
    message = "`num_valid` must be below the 60 training images; got 5000. Try num_valid=6."
    with pytest.raises(ValueError, match=message):
        mnist.split_images(read_images(folder), 8)


@pytest.mark.parametrize(
    ("make", "name", "pixels"),
    [
        (mnist.mnist_mlp_28, "mnist_mlp_28", 784),
        (mnist.mnist_mlp_14, "mnist_mlp_14", 196),
        (mnist.mnist_mlp_8, "mnist_mlp_8", 64),
        (mnist.fashion_mlp_28, "fashion_mlp_28", 784),
        (mnist.fashion_mlp_14, "fashion_mlp_14", 196),
        (mnist.fashion_mlp_8, "fashion_mlp_8", 64),
    ],
)
def test_families(make, name, pixels, cache, monkeypatch):
    splits = small_images()
    splits["test"].images[:] = 255 if "fashion" in name else 0
    other = "mnist" if "fashion" in name else "fashion_mnist"
    write_images(cache / ("fashion_mnist" if "fashion" in name else "mnist"), splits, {})
    assert not (cache / other).exists()
    real = mnist.split_images
    monkeypatch.setattr(mnist, "split_images", lambda on_disk, size: real(on_disk, size, 10))
    family = make()
    assert family.name == name
    for task in (*family.train, *family.evaluation):
        assert task.name.startswith(f"{name}_")
        assert task.data["train"].inputs.shape == (50, pixels)
        np.testing.assert_allclose(task.data["test"].inputs, float("fashion" in name), rtol=1e-6)
    first, *others = (task.data["train"].inputs for task in (*family.train, *family.evaluation))
    assert all(x is first for x in others)  # one copy on the device
    mnist._images.cache_clear()
