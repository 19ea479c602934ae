"""Multilayer perceptrons that classify small images."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o import Key, Split, Task, TaskFamily

META_TRAINED = ((32,), (32, 32), (64, 32))
"""Hidden layers of the variants that are meta-trained on side by side."""

HELD_OUT = ((128, 128), (64, 64, 64, 64))
"""Hidden layers, wider and deeper, that are never meta-trained on."""


class Images(NamedTuple):
    """Labelled images.

    Attributes:
        pixels: Pixels between 0 and 1, shape (images, pixels), float32.
        labels: Class indices, shape (images,), int32.
    """

    pixels: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Batch(NamedTuple):
    """Labelled images, of which the first `size` count.

    Attributes:
        pixels: Pixels between 0 and 1, shape (rows, pixels).
        labels: Class indices, shape (rows,).
        size: Number of rows that count, an int32 scalar.
    """

    pixels: jax.Array
    labels: jax.Array
    size: jax.Array


def image_mlp(
    name: str,
    data: Mapping[Split, Images],
    hidden_sizes: Sequence[int],
    *,
    varied: bool = False,
    batch_size: int = 64,
    num_classes: int = 10,
    family: str = "",
) -> Task:
    """ReLU MLPs that classify images, trained by cross-entropy in nats per example.

    With `varied`, instances differ in the scale of their initial weights (0.5 to 2 times He's),
    the part of the training rows they see (from a quarter up), their batch size (from an eighth
    of `batch_size` up) and a global reparametrisation (`SCALES`); without, every
    instance is the plain problem. The part of the rows is a run of consecutive ones, cyclically,
    so the rows must come shuffled.

    Args:
        name: Name of the task.
        data: Shuffled rows of each split; no row belongs to two.
        hidden_sizes: Widths of the hidden layers.
        varied: Whether instances differ.
        batch_size: Number of rows of a batch; fewer count in a varied instance.
        num_classes: Number of labels.
        family: Name that variants of the task share; empty for the task's own name.

    >>> import numpy as np
    >>> rows = Images(np.zeros((8, 4), np.float32), np.arange(8, dtype=np.int32) % 2)
    >>> data = {split: rows for split in ("train", "valid", "test")}
    >>> image_mlp("two_classes", data, (16,), num_classes=2).name
    'two_classes'
    """
    train_rows = len(data["train"].labels)
    sizes = (data["train"].pixels.shape[1], *hidden_sizes, num_classes)

    def sample(key: Key):
        if not varied:
            return {
                "init_scale": jnp.float32(1.0),
                "scale": jnp.float32(1.0),
                "first_row": jnp.int32(0),
                "num_rows": jnp.int32(train_rows),
                "batch_size": jnp.int32(batch_size),
            }
        k_init, k_scale, k_first_row, k_num_rows, k_batch_size = jax.random.split(key, 5)
        return {
            "init_scale": log_uniform(k_init, 0.5, 2.0),
            "scale": log_uniform(k_scale, *SCALES),
            "first_row": jax.random.randint(k_first_row, (), 0, train_rows),
            "num_rows": log_uniform(k_num_rows, train_rows / 4, train_rows).astype(jnp.int32),
            "batch_size": log_uniform(k_batch_size, batch_size / 8, batch_size).astype(jnp.int32),
        }

    weights_per_layer = [rows * columns for rows, columns in itertools.pairwise(sizes)]

    def init(key: Key, instance):
        normal = jax.random.normal(key, (sum(weights_per_layer),))  # one draw compiles faster
        params = {}
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            start = sum(weights_per_layer[:i])
            weights = normal[start : start + inputs * outputs].reshape(inputs, outputs)
            params[f"w{i}"] = instance["init_scale"] * jnp.sqrt(2.0 / inputs) * weights
            params[f"b{i}"] = jnp.zeros((outputs,))
        return jax.tree.map(lambda p: p / instance["scale"], params)

    def batch(key: Key, instance, data, split: Split):
        images = data[split]
        uniform = jax.random.uniform(key, (batch_size,))
        if split == "train":
            drawn = (uniform * instance["num_rows"]).astype(jnp.int32)
            rows = (instance["first_row"] + drawn) % train_rows
            size = instance["batch_size"]
        else:
            rows = (uniform * len(images.labels)).astype(jnp.int32)
            size = jnp.int32(batch_size)
        return Batch(images.pixels[rows], images.labels[rows], size)

    def all_rows(instance, data, split: Split):
        images = data[split]
        if split != "train":
            return Batch(images.pixels, images.labels, jnp.int32(len(images.labels)))
        rows = (instance["first_row"] + jnp.arange(train_rows)) % train_rows
        return Batch(images.pixels[rows], images.labels[rows], instance["num_rows"])

    def shrink(batch, fraction):
        size = jnp.maximum(jnp.round(fraction * batch.size), 1.0)
        return batch._replace(size=size.astype(batch.size.dtype))

    def logits(params, pixels, instance):
        x = pixels
        for i in range(len(sizes) - 1):
            x = x @ (instance["scale"] * params[f"w{i}"]) + instance["scale"] * params[f"b{i}"]
            if i < len(sizes) - 2:
                x = jax.nn.relu(x)
        return x

    def counted(batch):
        return jnp.arange(len(batch.labels)) < batch.size

    def mean_over_batch(values, batch):
        return jnp.sum(jnp.where(counted(batch), values, 0.0)) / batch.size

    def loss(params, batch, instance):
        log_probs = jax.nn.log_softmax(logits(params, batch.pixels, instance))
        log_likelihood = jnp.sum(log_probs * jax.nn.one_hot(batch.labels, num_classes), axis=-1)
        return -mean_over_batch(log_likelihood, batch)

    def metrics(params, batch, instance):
        predicted = jnp.argmax(logits(params, batch.pixels, instance), axis=-1)
        is_right = (predicted == batch.labels).astype(jnp.float32)
        return {
            "accuracy": mean_over_batch(is_right, batch),
            "macro_f1": macro_f1(predicted, batch.labels, counted(batch), num_classes),
        }

    return Task(
        name=name,
        family=family,
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        loss_cap=1.5 * float(np.log(num_classes)),
        data={split: Images(*map(jnp.asarray, rows)) for split, rows in data.items()},
        metrics=metrics,
        maximized=frozenset({"accuracy", "macro_f1"}),
        metric_caps={"accuracy": 0.0, "macro_f1": 0.0},
        loss_scale=float(np.log(num_classes)),
        all_rows=all_rows,
        shrink=shrink,
    )


def macro_f1(
    predicted: jax.Array, labels: jax.Array, counts: jax.Array, num_classes: int
) -> jax.Array:
    """Average F1 = 2 TP / (2 TP + FP + FN) over classes.

    Classes that are neither predicted nor there are left out, as scikit-learn does. It is no mean
    over rows: the F1 of a whole split is not the mean of those of its batches.

    Args:
        predicted: Predicted class indices, shape (rows,).
        labels: True class indices, shape (rows,).
        counts: Which rows count, shape (rows,).
        num_classes: Number of classes.
    """
    is_predicted = jax.nn.one_hot(predicted, num_classes) * counts[:, None]
    is_label = jax.nn.one_hot(labels, num_classes) * counts[:, None]
    hits = jnp.sum(is_predicted * is_label, axis=0)
    marked = jnp.sum(is_predicted + is_label, axis=0)
    f1 = 2.0 * hits / jnp.maximum(marked, 1.0)
    return jnp.sum(f1) / jnp.maximum(jnp.sum(marked > 0), 1)


SCALES = (0.25, 4.0)
"""Range of a global reparametrisation α: params are stored divided by α and used times α.

Celo draws it from 0.001 to 1,000; this range suits designs whose first step size is a constant."""


def log_uniform(key: Key, low: float, high: float) -> jax.Array:
    """A float32 scalar, log-uniform between `low` and `high`."""
    return jnp.exp(jax.random.uniform(key, minval=jnp.log(low), maxval=jnp.log(high)))


def image_mlp_family(name: str, data: Mapping[Split, Images]) -> TaskFamily:
    """MLPs on one data set: varied instances to meta-train on, plain ones to report on."""

    def label(hidden_sizes: Sequence[int]) -> str:
        return f"{name}_{'x'.join(map(str, hidden_sizes))}"

    return TaskFamily(
        name=name,
        train=tuple(
            image_mlp(f"{label(hidden)}_varied", data, hidden, varied=True, family=name)
            for hidden in META_TRAINED
        ),
        evaluation=tuple(
            image_mlp(label(hidden), data, hidden, family=name)
            for hidden in (*META_TRAINED, *HELD_OUT)
        ),
    )
