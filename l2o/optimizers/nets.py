"""The tiny networks inside learned optimizers, in plain JAX."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from l2o.task import Key

MLP = dict[str, jax.Array]
"""Weights `w0, w1, ...` of shape (inputs, outputs) and biases `b0, b1, ...` of shape (outputs,)."""

SCALAR_WIDTH = 8
"""Layers up to this wide are unrolled into scalar weights; wider ones multiply matrices."""


BLOCK = 2**15
"""Elements of a tensor that wide layers take at a time on CPUs, whose caches hold their units."""


def mlp_init(key: Key, sizes: Sequence[int]) -> MLP:
    """Draw the weights of an MLP with layers of these sizes, inputs first.

    Weights are normal with standard deviation 1/sqrt(inputs), truncated at two of them and not
    corrected for the truncation, as in Haiku and the published learned optimizers.
    """
    net: MLP = {}
    layers = list(itertools.pairwise(sizes))
    ends = list(itertools.accumulate(inputs * outputs for inputs, outputs in layers))
    normal = jax.random.truncated_normal(
        key, -2.0, 2.0, (ends[-1],), jnp.float32
    )  # one draw compiles faster
    for i, ((inputs, outputs), end) in enumerate(zip(layers, ends, strict=True)):
        weights = normal[end - inputs * outputs : end].reshape(inputs, outputs)
        net[f"w{i}"] = weights / jnp.sqrt(inputs)
        net[f"b{i}"] = jnp.zeros((outputs,), jnp.float32)
    return net


def mlp_apply(net: MLP, x: jax.Array, activation=jax.nn.relu) -> jax.Array:
    """Apply an MLP to a matrix of features: shape (..., inputs) to (..., outputs)."""
    num_layers = len(net) // 2
    for i in range(num_layers):
        x = x @ net[f"w{i}"] + net[f"b{i}"]
        if i < num_layers - 1:
            x = activation(x)
    return x


def folded_bias(net: MLP, shared: jax.Array) -> jax.Array:
    """Fold inputs that are the same at every element into the bias of the first layer.

    Args:
        net: Weights of the MLP.
        shared: Last inputs of the first layer, shape (k,).

    Returns:
        Shape (units,), for `mlp_per_parameter`.
    """
    return net["b0"] + shared @ net["w0"][-len(shared) :]


def mlp_per_parameter(
    net: MLP,
    features: Sequence[jax.Array],
    bias: jax.Array | None = None,
    scales: jax.Array | None = None,
) -> list[jax.Array]:
    """Apply a ReLU MLP at every element of a tensor, without a matrix of features.

    Equal to `mlp_apply` on the stacked features. A feature is an array that broadcasts to the
    tensor's shape, so a row statistic stays a row; narrow layers become sums of scalar weights
    times arrays, which XLA fuses with whatever made the features.

    Args:
        net: Weights of the MLP; the features are the first inputs of its first layer, and all of
            them unless there is a bias.
        features: Arrays that broadcast against each other.
        bias: Bias of the first layer, with the other inputs folded in; see `folded_bias`.
        scales: Factors of the features, shape (features,); they fold into the first weights.

    Returns:
        One array of the tensor's shape for each output.

    Raises:
        ValueError: Without a bias, if the features are not all inputs of the network.
    """
    if bias is None:
        bias = net["b0"]
        if len(net["w0"]) != len(features):
            raise ValueError(
                f"`features` must be the {len(net['w0'])} inputs of the network; got "
                f"{len(features)}. Fold the others into `bias`."
            )
    weights = net["w0"][: len(features)]
    if scales is not None:
        weights = weights * scales[:, None]
    layers = [(net[f"w{i}"], net[f"b{i}"]) for i in range(1, len(net) // 2)]
    return _per_parameter([(weights, bias), *layers], list(features))


Layers = list[tuple[jax.Array, jax.Array]]
"""The weights and the bias of each layer."""


@jax.custom_jvp
def _per_parameter(layers: Layers, features: list[jax.Array]) -> list[jax.Array]:
    if layers[0][0].shape[1] > SCALAR_WIDTH:
        outputs = _wide(layers, features)
        return [outputs[..., j] for j in range(outputs.shape[-1])]

    def affine(xs: Sequence[jax.Array], w: jax.Array, b: jax.Array) -> list[jax.Array]:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, x in enumerate(xs):
            by_shape.setdefault(x.shape, []).append(i)
        scalars, outputs = jnp.unstack(w.ravel()), []
        for j, total in enumerate(jnp.unstack(b)):
            for group in by_shape.values():
                products = [scalars[i * len(b) + j] * xs[i] for i in group]
                total = total + functools.reduce(jnp.add, products)
            outputs.append(total)
        return outputs

    hidden = affine(features, *layers[0])
    for w, b in layers[1:]:
        hidden = affine([jax.nn.relu(h) for h in hidden], w, b)
    return hidden


@_per_parameter.defjvp
def _per_parameter_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]):
    # Backwards, each scalar weight would be a sum over the tensor by itself.
    return jax.jvp(_by_matrices, primals, tangents)


def _by_matrices(layers: Layers, features: list[jax.Array]) -> list[jax.Array]:
    """The same on a matrix of shape (features, elements of the tensor)."""
    shape = jnp.broadcast_shapes(*[x.shape for x in features])
    x = jnp.stack([jnp.broadcast_to(x, shape).ravel() for x in features])
    for i, (w, b) in enumerate(layers):
        x = w.T @ (jax.nn.relu(x) if i else x) + b[:, None]
    return [row.reshape(shape) for row in x]


def _wide(layers: Layers, features: Sequence[jax.Array]) -> jax.Array:
    """The MLP by matrices, shape (*tensor's shape, outputs); in blocks of rows on CPUs."""
    shape = jnp.broadcast_shapes(*[x.shape for x in features])

    def apply(features: Sequence[jax.Array]) -> jax.Array:
        # XLA fuses the first layer with what makes the features; they are never stacked.
        weights, bias = layers[0]
        x = bias + sum(x[..., None] * w for x, w in zip(features, weights, strict=True))
        for w, b in layers[1:]:
            x = jax.nn.relu(x) @ w + b
        return x

    if math.prod(shape) <= BLOCK or shape[0] == 1 or jax.default_backend() != "cpu":
        return apply(features)
    is_whole = [x.shape[0] == 1 for x in features]

    def apply_to_row(rows: Sequence[jax.Array]) -> jax.Array:
        each = iter(rows)
        return apply([x[0] if w else next(each) for x, w in zip(features, is_whole, strict=True)])

    rows = [x for x, w in zip(features, is_whole, strict=True) if not w]
    return jax.lax.map(apply_to_row, rows, batch_size=max(1, BLOCK // math.prod(shape[1:])))


LSTM = dict[str, jax.Array]
"""Weights `w` (inputs + n, 4 n) and the bias `b` (4 n,): input, candidate, forget, output."""


def lstm_init(key: Key, num_inputs: int, hidden_size: int) -> LSTM:
    """Draw the weights of a long short-term memory (Gers et al. 2000), as `mlp_init` does."""
    shape = (num_inputs + hidden_size, 4 * hidden_size)
    normal = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    return {"w": normal / math.sqrt(shape[0]), "b": jnp.zeros(shape[1], jnp.float32)}


def lstm_apply(
    net: LSTM, x: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute the next hidden state and cell, (..., n); the forget gate has 1 added (Haiku)."""
    gates = jnp.concatenate([x, hidden], axis=-1) @ net["w"] + net["b"]
    input_gate, candidate, forget_gate, output_gate = jnp.split(gates, 4, axis=-1)
    kept = jax.nn.sigmoid(forget_gate + 1.0) * cell
    cell = kept + jax.nn.sigmoid(input_gate) * jnp.tanh(candidate)
    return jax.nn.sigmoid(output_gate) * jnp.tanh(cell), cell


GRU = dict[str, jax.Array]
"""Weights `w_in` (inputs, 3 n) and `w_h` (n, 3 n) and the bias `b` (3 n,): reset, update, new."""


def gru_init(key: Key, num_inputs: int, hidden_size: int) -> GRU:
    """Draw the weights of a gated recurrent unit (Cho et al. 2014), as `mlp_init` does."""
    k_in, k_h = jax.random.split(key)

    def draw(key: Key, rows: int) -> jax.Array:
        normal = jax.random.truncated_normal(key, -2.0, 2.0, (rows, 3 * hidden_size), jnp.float32)
        return normal / jnp.sqrt(rows)

    return {
        "w_in": draw(k_in, num_inputs),
        "w_h": draw(k_h, hidden_size),
        "b": jnp.zeros(3 * hidden_size, jnp.float32),
    }


def gru_apply(net: GRU, x: jax.Array, hidden: jax.Array) -> jax.Array:
    """Compute the next hidden state: shapes (..., inputs) and (..., n) to (..., n)."""
    from_x = jnp.split(x @ net["w_in"] + net["b"], 3, axis=-1)
    from_h = jnp.split(hidden @ net["w_h"], 3, axis=-1)
    reset = jax.nn.sigmoid(from_x[0] + from_h[0])
    update = jax.nn.sigmoid(from_x[1] + from_h[1])
    new = jnp.tanh(from_x[2] + reset * from_h[2])
    return (1.0 - update) * new + update * hidden
