"""Multiply-adds against closed forms, and layers in the order of their use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_trained import conv_net, trained_mlp

import l2o
from l2o.compression.layers import leaves_by_name, uses
from l2o.tasks.networks.bert import bert
from l2o.tasks.networks.conv import Conv


def test_dense_and_convolutional_layers():
    assert [tuple(layer) for layer in trained_mlp().layers] == [
        ("first/kernel", (64, 16), 64 * 16),
        ("second/kernel", (16, 12), 16 * 12),
        ("last/kernel", (12, 10), 12 * 10),
    ]
    positions = {"conv/kernel": 64, "strided/kernel": 16, "dense/kernel": 1, "last/kernel": 1}
    layers = conv_net().layers
    assert [layer.name for layer in layers] == list(positions)
    assert [layer.multiply_adds for layer in layers] == [
        layer.size * positions[layer.name] for layer in layers
    ]
    assert conv_net().frozen == {"norm/mean", "norm/var"}


def recurrent(w, x, scan):
    """A state that begins at zero, and depends on the inputs from its second step on."""
    return scan(
        lambda h, _: (jnp.tanh(h @ w.T)[:, :1] + x, None), jnp.zeros((1, 3)), None, length=5
    )


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda w, x: x @ w.T, 6),
        (lambda w, x: jax.jit(lambda x, w: x @ w.astype(jnp.float32).reshape(2, 3).T)(x, w), 6),
        (lambda w, x: jax.lax.scan(lambda x, _: ((x @ w.T) @ w, None), x, None, length=5)[0], 60),
        (lambda w, x: recurrent(w, x, jax.lax.scan)[0], 5 * 6),
        (lambda w, x: jax.lax.fori_loop(0, 5, lambda _, h: h @ w.T @ w + x, jnp.zeros((1, 3))), 60),
        (
            lambda w, x: jax.lax.while_loop(
                lambda h: jnp.sum(h) + jnp.sum(x) < 1, lambda h: h @ w.T @ w + x, jnp.zeros((1, 3))
            ),
            12,  # the body counts once
        ),
        (lambda w, x: jax.lax.scan(lambda h, y: (h + y @ w.T, h), x[:, :2], x[None])[0], 6),
        (lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ w.T, lambda x: x @ w.T, x), 12),
        (lambda w, x: jax.checkpoint(lambda x: x @ (0.5 * w).T)(x), 6),
        (lambda w, x: x + w[x[:, 0].astype(int)], 0),  # a table, of which rows are read
        (lambda w, x: jnp.tanh(x * 2.0) + (w @ w.T)[0, 0], 0),  # a product without inputs
    ],
)
def test_programs(network, expected):
    apply = lambda params, x: network(params["w"], x)
    found = uses(apply, {"w": jnp.ones((2, 3))}, jnp.ones((1, 3)))
    assert found.multiply_adds["w"] == expected


def test_a_matrix_of_patches_is_a_convolution():
    graph, state = nnx.split(Conv((2, 5), stride=2, rngs=nnx.Rngs(0)))
    apply = lambda params, x: nnx.merge(graph, params)(x)
    found = uses(apply, nnx.to_pure_dict(state), jnp.ones((1, 8, 8, 2)))
    assert found.multiply_adds == {"bias": 0, "kernel": 16 * 9 * 2 * 5}


def test_low_rank_factors_and_tables_of_a_transformer():
    linear = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
    norm = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
    layer = {n: linear(4, 4) for n in ("query", "key", "value", "attended")}
    layer |= {"up": linear(4, 8), "down": linear(8, 4), "attention_norm": norm, "output_norm": norm}
    layer["query"] |= {"a": jnp.ones((4, 1)), "b": jnp.ones((1, 4))}
    table = {"word": jnp.ones((9, 4)), "position": jnp.ones((3, 4)), "type": jnp.ones(4)}
    weights = {"embeddings": {**table, "norm": norm}, "layers": {"0": layer}}
    found = uses(lambda w, x: bert(w, x, heads=2), weights, jnp.zeros((1, 3), jnp.int32))
    assert found.multiply_adds["embeddings/word"] == 0
    assert found.multiply_adds["embeddings/position"] == 0
    assert found.multiply_adds["layers/0/up/kernel"] == 3 * 4 * 8
    assert found.multiply_adds["layers/0/query/a"] == 3 * 4
    assert found.order.index("embeddings/word") < found.order.index("layers/0/up/kernel")


@jax.tree_util.register_pytree_node_class
class Nameless:
    def tree_flatten(self):
        return (jnp.ones((2, 2)),), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls()


ROWS = (np.eye(4, dtype=np.float32), np.arange(4) % 2)
DATA = {"train": ROWS, "valid": ROWS, "test": ROWS}
LINEAR = {"w": np.ones((4, 2), np.float32)}
apply_linear = lambda params, x: x @ params["w"]


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ({"w": Nameless()}, {}, "`params` must name its layers; got dict with an array at"),
        (
            np.ones((4, 2)),
            {},
            "`params` must name its layers; got ndarray with an array at its top",
        ),
        (
            {"b": np.ones(2)},
            {},
            "`params` of net must have layers, real arrays of two axes or more",
        ),
        ({"w": np.ones((4, 2), int)}, {}, "`params` of net must have layers"),
        ({"w": "text"}, {}, "`params` of net must be arrays; got str at w"),
        (
            LINEAR,
            {"metric": "recall"},
            "`metric` must be one of loss, accuracy, macro_f1; got recall",
        ),
        (LINEAR, {"frozen": ["v"]}, "`frozen` must be a set of names of arrays of net; got 'v'"),
        (LINEAR, {"frozen": "w"}, "`frozen` must be a set of names of arrays of net; got 'w'. Try"),
        (LINEAR, {"frozen": frozenset(["w"])}, "`params` of net must have layers"),
    ],
)
def test_mistakes(params, options, message):
    with pytest.raises(ValueError) as error:
        l2o.trained_model("net", params, apply_linear, DATA, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_mistakes_in_modules_and_data():
    with pytest.raises(ValueError, match="`module` of net must be a trained nnx"):
        l2o.trained_model_nnx("net", {}, DATA)
    wrong = {**DATA, "valid": (ROWS[0], np.full(4, 7))}
    with pytest.raises(ValueError, match="targets of valid must be from 0 to 1"):
        l2o.trained_model("net", LINEAR, apply_linear, wrong)


def test_scores_are_higher_for_better_and_finite():
    model = l2o.trained_model("net", LINEAR, apply_linear, DATA, metric="loss")
    rows = model.data["valid"]
    assert model.score(model.params, rows) == pytest.approx(-np.log(2.0), rel=1e-6)
    assert model.score({"w": jnp.full((4, 2), jnp.nan)}, rows) == -1e9
    assert list(leaves_by_name(model.params)) == ["w"]
