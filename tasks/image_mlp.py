"""Multilayer perceptrons that classify small images."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import l2o
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

    Initial weights are He's.

    Args:
        name: Name of the task.
        data: Shuffled rows of each split; no row belongs to two.
        hidden_sizes: Widths of the hidden layers.
        varied: Whether instances differ, as in `l2o.supervised`.
        batch_size: Number of rows of a batch; fewer count in a varied instance.
        num_classes: Number of labels.
        family: Name that variants of the task share; empty for the task's own name.

    >>> import numpy as np
    >>> rows = Images(np.zeros((8, 4), np.float32), np.arange(8, dtype=np.int32) % 2)
    >>> data = {split: rows for split in ("train", "valid", "test")}
    >>> image_mlp("two_classes", data, (16,), num_classes=2).name
    'two_classes'
    """
    sizes = (data["train"].pixels.shape[1], *hidden_sizes, num_classes)
    layers = tuple(itertools.pairwise(sizes))
    ends = np.cumsum([inputs * outputs for inputs, outputs in layers])

    def init(key: Key):
        normal = jax.random.normal(key, (ends[-1],))  # one draw compiles faster
        params = {}
        for i, ((inputs, outputs), weights) in enumerate(
            zip(layers, jnp.split(normal, ends[:-1]), strict=True)
        ):
            params[f"w{i}"] = jnp.sqrt(2.0 / inputs) * weights.reshape(inputs, outputs)
            params[f"b{i}"] = jnp.zeros((outputs,))
        return params

    def apply(params, pixels):
        x = pixels
        for i in range(len(layers)):
            x = x @ params[f"w{i}"] + params[f"b{i}"]
            if i < len(layers) - 1:
                x = jax.nn.relu(x)
        return x

    return l2o.supervised(
        name, data, init, apply, batch_size=batch_size, varied=varied, family=family
    )


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
