"""Image classifiers: instances, batches and metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import SPLITS, draw, tasks
from sklearn.metrics import f1_score

from l2o.supervision.criterion import macro_f1
from l2o.supervision.supervised import SCALES
from l2o.tasks.digits import (
    SPLIT_SIZES,
)
from l2o.tasks.image_mlp import Images, image_mlp


@functools.cache
def numbered_images():
    """Images whose first pixel is their number, 12 or so a split, told apart by hundreds."""
    rng = np.random.default_rng(0)
    splits = {}
    for i, (split, rows) in enumerate(zip(SPLITS, (40, 9, 11), strict=True)):
        pixels = rng.uniform(size=(rows, 4)).astype(np.float32)
        pixels[:, 0] = 100 * i + np.arange(rows)
        splits[split] = Images(pixels, rng.integers(0, 3, rows).astype(np.int32))
    return splits


def test_reparametrisation_computes_the_same_function(key):
    """The init divides by the scale and the loss multiplies: gradients grow by the scale."""
    task = tasks()["images_varied"]
    found = []
    instance = jax.jit(task.sample)(key)
    for scale in (1.0, 8.0):
        scaled = instance | {"scale": jnp.float32(scale)}
        params = task.init(key, scaled)
        batch = task.batch(key, scaled, task.data, "train")
        found.append((params, *jax.value_and_grad(task.loss)(params, batch, scaled)))
    (p1, loss1, g1), (p8, loss8, g8) = found
    np.testing.assert_allclose(loss1, loss8, rtol=1e-5)
    np.testing.assert_allclose(p8["w0"], p1["w0"] / 8, rtol=1e-6)
    np.testing.assert_allclose(g8["w0"], g1["w0"] * 8, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(g8["b1"], g1["b1"] * 8, rtol=1e-3, atol=1e-6)


def test_instances_vary_as_documented(key):
    instances = jax.jit(jax.vmap(tasks()["images_varied"].sample))(jax.random.split(key, 100))
    rows = SPLIT_SIZES["train"]
    ranges = {
        "init_scale": (0.5, 2.0),
        "scale": SCALES,
        "num_rows": (rows // 4, rows),
        "batch_size": (2, 16),
    }
    for name, (low, high) in ranges.items():
        values = np.asarray(instances[name])
        assert np.all(values >= low) and np.all(values <= high * 1.0001), name
        middle = np.sqrt(low * high)  # log-uniform: half on either side
        assert 30 < np.sum(values < middle) < 70, name


@pytest.mark.parametrize("varied", [False, True])
def test_batches_hold_rows_of_their_split_only(varied, key):
    data = numbered_images()
    task = image_mlp("numbered", data, (2,), varied=varied, batch_size=64, num_classes=3)
    instance = jax.jit(task.sample)(key)
    allowed = set(((instance["first_row"] + np.arange(instance["num_rows"])) % 40).tolist())
    assert not varied or len(allowed) < 40
    labels = {split: np.asarray(part.labels) for split, part in data.items()}
    batch_of = jax.jit(task.batch, static_argnums=3)
    for i, split in enumerate(SPLITS):
        seen = set()
        for k in jax.random.split(key, 10):
            batch = batch_of(k, instance, task.data, split)
            numbers = np.asarray(batch.inputs)[:, 0].astype(int) - 100 * i
            assert np.all((numbers >= 0) & (numbers < len(labels[split])))
            np.testing.assert_array_equal(batch.targets, labels[split][numbers])
            seen |= set(numbers.tolist())
        assert seen == (allowed if split == "train" else set(range(len(labels[split]))))


@pytest.mark.parametrize("varied", [False, True])
def test_all_rows_are_those_that_batches_are_drawn_from_each_once(varied, key):
    data = numbered_images()
    task = image_mlp("numbered", data, (2,), varied=varied, batch_size=4, num_classes=3)
    instance = jax.jit(task.sample)(key)
    assert task.all_rows is not None
    for i, split in enumerate(SPLITS):
        rows = task.all_rows(instance, task.data, split)
        numbers = np.asarray(rows.inputs)[: int(rows.size), 0].astype(int) - 100 * i
        every = np.arange(len(data[split].labels))
        if split == "train":
            every = (instance["first_row"] + np.arange(instance["num_rows"])) % 40
        assert sorted(numbers.tolist()) == sorted(every.tolist())
        labels = np.asarray(data[split].labels)[numbers]
        np.testing.assert_array_equal(rows.targets[: int(rows.size)], labels)


def test_rows_beyond_the_batch_size_do_not_count(key):
    task = tasks()["images_varied"]
    first = draw(task, key)
    size = 5
    batch = first.batch._replace(size=jnp.int32(size))
    spoiled = batch._replace(inputs=batch.inputs.at[size:].set(9.0))
    for function in (task.loss, lambda *args: task.metrics(*args)["accuracy"]):
        short = function(first.params, spoiled, first.instance)
        alone = jnp.mean(
            jnp.stack(
                [
                    function(
                        first.params,
                        type(batch)(
                            jnp.roll(batch.inputs, -i, 0), jnp.roll(batch.targets, -i), jnp.int32(1)
                        ),
                        first.instance,
                    )
                    for i in range(size)
                ]
            )
        )
        np.testing.assert_allclose(short, alone, rtol=1e-5)
    counted = batch._replace(inputs=batch.inputs.at[size - 1 :].set(9.0))
    assert task.loss(first.params, counted, first.instance) != task.loss(
        first.params, batch, first.instance
    )


def test_untrained_loss_is_about_that_of_guessing(key):
    task = tasks()["images"]
    first = draw(task, key)
    zero = jax.tree.map(jnp.zeros_like, first.params)
    np.testing.assert_allclose(task.loss(zero, first.batch, first.instance), np.log(10), rtol=1e-5)


@pytest.mark.parametrize("size", [5, 64])
def test_macro_f1_is_scikit_learns(size):
    rng = np.random.default_rng(size)
    predicted, labels = rng.integers(0, 10, (2, 64))
    labels[:3] = predicted[:3]
    counts = np.arange(64) < size
    expected = f1_score(labels[:size], predicted[:size], average="macro")
    found = macro_f1(jnp.asarray(predicted), jnp.asarray(labels), jnp.asarray(counts), 10)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
