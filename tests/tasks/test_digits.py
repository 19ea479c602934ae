"""Digits and their splits."""

import numpy as np

from l2o.tasks.digits import (
    SPLIT_SIZES,
    digits,
    digits_mlp,
    imbalanced_digits,
    imbalanced_digits_mlp,
)


def test_digits_splits_are_disjoint_and_whole():
    """By position in scikit-learn's array: every image is in one split, once."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    position = {}
    for i, (row, label) in enumerate(zip(pixels, labels, strict=True)):
        position.setdefault((*row, label), []).append(i)
    assert len(position) == len(labels)  # no two images are alike, so pixels tell the position
    found = {
        split: {
            position[(*row, label)][0]
            for row, label in zip(
                np.asarray(part.pixels) * 16, np.asarray(part.labels), strict=True
            )
        }
        for split, part in digits().items()
    }
    assert {split: len(rows) for split, rows in found.items()} == dict(SPLIT_SIZES)
    assert set.union(*found.values()) == set(range(1797))


def test_rare_digits_are_rare_in_training_only():
    whole, part = digits(), imbalanced_digits()
    for split in ("train", "valid"):
        labels = np.asarray(part[split].labels)
        class_shares = np.bincount(labels, minlength=10) / np.bincount(whole[split].labels)
        np.testing.assert_array_equal(class_shares[:5], 1.0)
        assert np.all(class_shares[5:] < 0.25)
        assert np.all(np.bincount(labels, minlength=10) > 0) or split == "valid"
    assert part["test"] is whole["test"]
    rows = {tuple(row) for row in np.asarray(whole["train"].pixels)}
    assert all(tuple(row) in rows for row in np.asarray(part["train"].pixels))
    names = [task.name for task in imbalanced_digits_mlp().evaluation]
    assert "imbalanced_digits_mlp_128x128" in names


def test_family_of_digits():
    family = digits_mlp()
    names = [task.name for task in (*family.train, *family.evaluation)]
    assert len(names) == len(set(names)) and all("digits_mlp_" in name for name in names)
    assert "digits_mlp_128x128" in [task.name for task in family.evaluation]
    assert all(task.name.endswith("_varied") for task in family.train)
