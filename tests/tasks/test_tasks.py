"""One table: every kind of task, and what meta-training expects of it."""

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import f1_score

from l2o.task import Task, TaskFamily, validate_task
from l2o.tasks.badly_scaled import badly_scaled
from l2o.tasks.digits import (
    SPLIT_SIZES,
    digits,
    digits_mlp,
    imbalanced_digits,
    imbalanced_digits_mlp,
)
from l2o.tasks.image_mlp import SCALES, Images, image_mlp, macro_f1
from l2o.tasks.quadratic import random_rotation, rosenbrock, rotated_quadratic

SPLITS = ("train", "valid", "test")


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


@functools.cache
def tasks() -> dict[str, Task]:
    return {
        "quadratic": rotated_quadratic(dim=3),
        "rosenbrock": rosenbrock(noise=0.1),
        "images": image_mlp("plain", digits(), (16,)),
        "images_varied": image_mlp("varied", digits(), (16,), varied=True, batch_size=16),
    }


NAMES = ["quadratic", "rosenbrock", "images", "images_varied"]
RATES = {"quadratic": 0.05, "rosenbrock": 0.02, "images": 0.01, "images_varied": 0.01}


class Draw(NamedTuple):
    """An instance, parameters and a batch."""

    instance: object
    params: object
    batch: object


def draw(task: Task, key, split="train") -> Draw:
    k_sample, k_init, k_batch = jax.random.split(key, 3)
    instance = task.sample(k_sample)
    params = task.init(k_init, instance)
    return Draw(instance, params, task.batch(k_batch, instance, task.data, split))


def differ(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_in_key_with_finite_nonzero_gradients(name, key):
    task = tasks()[name]
    validate_task(task)
    function = jax.jit(lambda k: draw(task, k))
    first, again, other = function(key), function(key), function(jax.random.key(1))
    assert not differ(first, again)
    assert differ(first.params, other.params) and differ(first.batch, other.batch)
    assert differ(first.instance, other.instance) == (name != "images")
    loss, grads = jax.value_and_grad(task.loss)(first.params, first.batch, first.instance)
    assert loss.shape == () and np.isfinite(loss) and loss < task.loss_cap
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_under_adam_for_several_instances_at_once(name, key):
    task = tasks()[name]
    tx = optax.adam(RATES[name])

    def train(k):
        first = draw(task, k)
        # Parameters are stored divided by the scale: so is Adam's step.
        scale = first.instance.get("scale", jnp.float32(1.0))

        def step(carry, k_batch):
            params, state = carry
            batch = task.batch(k_batch, first.instance, task.data, "train")
            loss, grads = jax.value_and_grad(task.loss)(params, batch, first.instance)
            updates, state = tx.update(grads, state, params)
            updates = jax.tree.map(lambda u: u / scale, updates)
            return (optax.apply_updates(params, updates), state), loss

        carry = (first.params, tx.init(first.params))
        (params, _), losses = jax.lax.scan(step, carry, jax.random.split(k, 150))
        metrics = {}
        for split in SPLITS:
            batch = task.batch(k, first.instance, task.data, split)
            metrics[split] = dict(task.metrics(params, batch, first.instance))
        return losses, metrics

    losses, metrics = jax.jit(jax.vmap(train))(jax.random.split(key, 4))
    assert losses.shape == (4, 150)
    start, end = np.mean(losses[:, :5]), np.mean(losses[:, -20:])
    assert end < 0.6 * start
    if name == "images":
        assert np.all(metrics["test"]["accuracy"] > 0.6)
        assert np.all(metrics["test"]["accuracy"] <= 1.0)


def test_rotations_are_uniform():
    """Orthogonal, and with the moments of Haar's measure within four standard errors."""
    dim, draws = 3, 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    q = np.asarray(jax.jit(jax.vmap(lambda key: random_rotation(key, dim)))(keys), np.float64)
    np.testing.assert_allclose(
        q @ q.swapaxes(1, 2), np.broadcast_to(np.eye(dim), q.shape), atol=1e-5
    )

    def check(values, expected):
        error = np.std(values, axis=0) / np.sqrt(draws)
        assert np.all(np.abs(np.mean(values, axis=0) - expected) < 4.0 * error)

    check(q, 0.0)
    check(q**2, 1.0 / dim)
    check(q**4, 3.0 / (dim * (dim + 2)))
    check(np.linalg.det(q), 0.0)
    check(np.trace(q, axis1=1, axis2=2) ** 2, 1.0)


def test_quadratic_has_its_minimum_where_it_says(key):
    task = rotated_quadratic(dim=3, noise=0.1)
    instance = task.sample(key)
    shift = task.batch(key, instance, (), "train")
    best = {"x": instance["minimum"] + shift}
    loss, grads = jax.value_and_grad(task.loss)(best, shift, instance)
    assert loss < 1e-10 and np.max(np.abs(grads["x"])) < 1e-5
    np.testing.assert_allclose(
        task.metrics(best, shift, instance)["distance_to_minimum"],
        jnp.linalg.norm(shift),
        rtol=1e-5,
    )
    rotation = instance["rotation"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    hessian = jax.hessian(lambda x: task.loss({"x": x}, shift, instance))(best["x"])
    np.testing.assert_allclose(
        np.linalg.eigvalsh(hessian), np.sort(instance["curvature"]), rtol=1e-4
    )
    assert np.all((instance["curvature"] >= 0.01) & (instance["curvature"] <= 1.0))
    np.testing.assert_allclose(
        np.std(
            jax.vmap(lambda k: task.batch(k, instance, (), "train"))(jax.random.split(key, 1000))
        ),
        0.1,
        rtol=0.1,
    )


def test_rosenbrock_has_its_minimum_at_one_one(key):
    task = rosenbrock()
    instance = task.sample(key)
    tilt = task.batch(key, instance, (), "train")
    loss, grads = jax.value_and_grad(task.loss)({"xy": jnp.ones(2)}, tilt, instance)
    assert loss == 0 and not np.any(grads["xy"])
    assert 1.0 <= instance["steepness"] <= 100.0
    off = task.loss({"xy": jnp.array([2.0, 3.0])}, tilt, instance)
    np.testing.assert_allclose(off, 1.0 + instance["steepness"], rtol=1e-5)


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
            numbers = np.asarray(batch.pixels)[:, 0].astype(int) - 100 * i
            assert np.all((numbers >= 0) & (numbers < len(labels[split])))
            np.testing.assert_array_equal(batch.labels, labels[split][numbers])
            seen |= set(numbers.tolist())
        assert seen == (allowed if split == "train" else set(range(len(labels[split]))))


def test_rows_beyond_the_batch_size_do_not_count(key):
    task = tasks()["images_varied"]
    first = draw(task, key)
    size = 5
    batch = first.batch._replace(size=jnp.int32(size))
    spoiled = batch._replace(pixels=batch.pixels.at[size:].set(9.0))
    for function in (task.loss, lambda *args: task.metrics(*args)["accuracy"]):
        short = function(first.params, spoiled, first.instance)
        alone = jnp.mean(
            jnp.stack(
                [
                    function(
                        first.params,
                        type(batch)(
                            jnp.roll(batch.pixels, -i, 0), jnp.roll(batch.labels, -i), jnp.int32(1)
                        ),
                        first.instance,
                    )
                    for i in range(size)
                ]
            )
        )
        np.testing.assert_allclose(short, alone, rtol=1e-5)
    counted = batch._replace(pixels=batch.pixels.at[size - 1 :].set(9.0))
    assert task.loss(first.params, counted, first.instance) != task.loss(
        first.params, batch, first.instance
    )


def test_untrained_loss_is_about_that_of_guessing(key):
    task = tasks()["images"]
    first = draw(task, key)
    zero = jax.tree.map(jnp.zeros_like, first.params)
    np.testing.assert_allclose(task.loss(zero, first.batch, first.instance), np.log(10), rtol=1e-5)


def test_units_change_nothing_but_the_parameters():
    plain = image_mlp("plain", digits(), (8,))
    for varied in (True, False):
        task = badly_scaled(plain, varied=varied)
        k_sample, k_init, k_batch = jax.random.split(jax.random.key(0), 3)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)
        units = np.asarray(instance["units"])
        assert units.shape == (4,) and np.all((units >= 1 / 8.001) & (units <= 8.001))
        assert len(set(units.round(4))) == (4 if varied else 2)
        whole = plain.init(k_init, instance["task"])
        np.testing.assert_allclose(params["w1"] * units[3], whole["w1"], rtol=1e-5)
        batch = task.batch(k_batch, instance, task.data, "train")
        expected = plain.loss(whole, batch, instance["task"])
        np.testing.assert_allclose(task.loss(params, batch, instance), expected, rtol=1e-5)
        assert set(task.metrics(params, batch, instance)) == {"accuracy", "macro_f1"}
    with pytest.raises(ValueError, match="`span` must be at least 1"):
        badly_scaled(plain, varied=True, span=0.5)


def test_rare_digits_are_rare_in_training_only():
    whole, part = digits(), imbalanced_digits()
    for split in ("train", "valid"):
        labels = np.asarray(part[split].labels)
        of_class = np.bincount(labels, minlength=10) / np.bincount(whole[split].labels)
        np.testing.assert_array_equal(of_class[:5], 1.0)
        assert np.all(of_class[5:] < 0.25)
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


def test_family_refuses_a_name_in_both_lists():
    one, two = rotated_quadratic(dim=2), rotated_quadratic(dim=3)
    TaskFamily(name="fine", train=(one,), evaluation=(two,))
    for train, evaluation in (((one,), (two, one)), ((one, one), (two,))):
        with pytest.raises(
            ValueError, match=r"of family mixed must be disjoint.*quadratic_2 twice"
        ):
            TaskFamily(name="mixed", train=train, evaluation=evaluation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "`dim` must be at least 1; got 0. Try dim=10."),
        ({"noise": -1.0}, "`noise` must not be negative; got -1.0. Try noise=0.1."),
    ],
)
def test_bad_quadratics(options, message):
    with pytest.raises(ValueError, match=message):
        rotated_quadratic(**options)


@pytest.mark.parametrize("size", [5, 64])
def test_macro_f1_is_scikit_learns(size):
    rng = np.random.default_rng(size)
    predicted, labels = rng.integers(0, 10, (2, 64))
    labels[:3] = predicted[:3]
    counts = np.arange(64) < size
    expected = f1_score(labels[:size], predicted[:size], average="macro")
    found = macro_f1(jnp.asarray(predicted), jnp.asarray(labels), jnp.asarray(counts), 10)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_loss_scale_must_be_positive():
    with pytest.raises(ValueError, match="`loss_scale` of task rosenbrock must be positive"):
        validate_task(replace(rosenbrock(), loss_scale=0.0))
