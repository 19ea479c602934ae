"""Emoji as tasks have them."""

import numpy as np

from l2o.datasets.idx import LabelledImages
from l2o.tasks.emoji import halved


def test_pixels_are_means_of_two_by_two_with_colours_last():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    found = halved(LabelledImages(images, np.array([1, 8, 0], np.uint8)))
    expected = np.mean(
        [images[:, i::2, j::2] / 255.0 for i in (0, 1) for j in (0, 1)], axis=0
    ).reshape(3, -1)
    assert found.pixels.dtype == np.float32 and found.labels.tolist() == [1, 8, 0]
    np.testing.assert_allclose(found.pixels, expected, rtol=1e-5)
