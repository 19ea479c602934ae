"""Small trained networks of a user's own, and budgets of made-up ones."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import l2o
from l2o.compression.pruning import prune_weights
from l2o.compression.quantization import quantize_weights
from l2o.compression.units import prune_units
from l2o.tasks.digits import digits


def mlp(params, pixels):
    hidden = jax.nn.relu(pixels @ params["first"]["kernel"] + params["first"]["bias"])
    hidden = jax.nn.relu(hidden @ params["second"]["kernel"] + params["second"]["bias"])
    return hidden @ params["last"]["kernel"] + params["last"]["bias"]


def mlp_params(key, sizes=(64, 16, 12, 10)):
    names = ("first", "second", "last")
    keys = jax.random.split(key, len(names))
    return {
        name: {
            "kernel": jax.random.normal(k, shape) * (2.0 / shape[0]) ** 0.5,
            "bias": jnp.zeros(shape[1]),
        }
        for name, k, shape in zip(names, keys, itertools.pairwise(sizes), strict=True)
    }


@functools.cache
def trained_mlp(seed: int = 0) -> l2o.TrainedModel:
    """An MLP on the digits, trained for a second."""
    rows = digits()["train"]
    tx = optax.adam(0.01)

    @jax.jit
    def train(params, keys, rows):
        def loss(params, indices):
            logits = mlp(params, rows.pixels[indices])
            labels = rows.labels[indices]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(carry, key):
            params, state = carry
            indices = jax.random.randint(key, (64,), 0, len(rows.labels))
            updates, state = tx.update(jax.grad(loss)(params, indices), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    k_init, k_steps = jax.random.split(jax.random.key(seed))
    rows = jax.tree.map(jnp.asarray, rows)
    params = train(mlp_params(k_init), jax.random.split(k_steps, 200), rows)
    return l2o.trained_model("digits_mlp", params, mlp, digits())


class ConvNet(nnx.Module):
    """Convolutions with batch normalisation, flattened into dense layers."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.strided = nnx.Conv(4, 6, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(6 * 16, 8, rngs=rngs)
        self.last = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, pixels):
        x = nnx.relu(self.norm(self.conv(pixels.reshape(-1, 8, 8, 1))))
        x = nnx.relu(self.strided(x))
        return self.last(nnx.relu(self.dense(x.reshape(len(x), -1))))


@functools.cache
def conv_net() -> l2o.TrainedModel:
    """A convolutional network, not trained, with running statistics that are not 0 and 1."""
    module = ConvNet(nnx.Rngs(0))
    module(digits()["train"].pixels[:64])
    return l2o.trained_model_nnx("digits_conv", module, digits())


def schemes(model: l2o.TrainedModel):
    """Each way to compress, by the name of its budget."""
    return {
        "keep": prune_weights(model, keep=0.2),
        "flops": prune_weights(model, flops=0.3),
        "units": prune_units(model, keep=0.4)[0],
        "unit_flops": prune_units(model, flops=0.5)[0],
        "bits": quantize_weights(model, bits=3.5),
    }


def is_whole(array) -> bool:
    return bool(np.all(np.asarray(array) == np.round(array)))
