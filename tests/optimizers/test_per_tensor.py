"""Tensors are updated together, and are not mixed up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from design_cases import (
    HORIZON,
    NAMES,
    SMALL,
    TABLE,
    Case,
    assert_close,
    case,
    compiled,
    perturbed_theta,
    run,
)

from l2o.optimizers import nets
from l2o.optimizers.layout import Packed
from l2o.optimizers.per_tensor import per_tensor_transform
from l2o.registry import DESIGNS


@pytest.mark.parametrize("name", NAMES)
def test_order_of_leaves_does_not_matter(name):
    c = case(SMALL)
    renamed = Case(
        *({"z": tree["a"], "y": tree["b"]} for tree in (c.grads, c.params)), value=c.value
    )
    (found,), _ = run(compiled(name), [renamed])
    (expected,), _ = run(compiled(name), [c])
    assert_close(found, {"z": expected["a"], "y": expected["b"]})


def test_small_tensors_of_one_shape_are_updated_as_one():
    """Each costs what it takes to take it apart again, not the kernels of an update of its own."""

    def kernels(num_leaves: int) -> int:
        params = {f"w{i}": jnp.ones((2, 3)) for i in range(num_leaves)}
        tx = TABLE["adafac_mlp"].transform(perturbed_theta("adafac_mlp"))
        compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
        return compiled.as_text().count(" fusion(")

    one, few, many = map(kernels, (1, 8, 16))
    assert (many - few) / 8 <= one / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("others", ["", "cd"], ids=["two", "stacked"])
def test_leaves_of_one_shape_are_not_mixed_up(name, others):
    c = case({leaf: (2,) for leaf in "ab" + others})
    swap = lambda tree: tree | {"a": tree["b"], "b": tree["a"]}
    swapped = Case(*(swap(tree) for tree in (c.grads, c.params)), value=c.value)
    found, found_state = run(compiled(name), [c, c])
    expected, expected_state = run(compiled(name), [swapped, swapped])
    assert_close([swap(u) for u in found], expected)
    assert not np.allclose(found[1]["a"], found[1]["b"])
    sizes = [sorted(np.ravel(x).tolist()) for x in jax.tree.leaves(found_state)]
    assert sorted(sizes) == sorted(
        sorted(np.ravel(x).tolist()) for x in jax.tree.leaves(expected_state)
    )


@pytest.mark.parametrize("name", ["adafac_mlp", "celo", "mlp_lopt", "nominal_mlp"])
def test_trees_share_the_traces_of_shapes_that_they_have_in_common(name, monkeypatch):
    traced = []
    apply = nets.mlp_per_parameter

    def counted(net, features, *args, **kwargs):
        traced.append(jnp.broadcast_shapes(*[x.shape for x in features]))
        return apply(net, features, *args, **kwargs)

    monkeypatch.setattr(nets, "mlp_per_parameter", counted)
    lopt, theta = DESIGNS[name](), DESIGNS[name]().init(jax.random.key(0))
    for shapes in ({"a": (2, 3), "b": (5,)}, {"c": (2, 3), "d": (7,)}):
        c = case(shapes)
        tx = lopt.transform(theta, horizon=HORIZON)
        jax.jit(tx.update).trace(c.grads, tx.init(c.params), c.params, value=c.value)
    assert sorted(traced) == [(2, 3), (5,), (7,)]


@pytest.mark.parametrize("name", ["adafac_mlp", "celo", "mlp_lopt", "nominal_mlp"])
def test_small_tensors_of_one_shape_are_updated_as_one_and_alike(name, monkeypatch):
    c = case({"a": (4,), "b": (2, 3), "c": (4,), "d": (2, 3), "e": (4,)})
    together, _ = run(compiled(name), [c, c])
    monkeypatch.setattr("l2o.optimizers.per_tensor.SMALL", 0)
    apart, _ = run(compiled.__wrapped__(name), [c, c])
    assert_close(together, apart)


@pytest.mark.parametrize("start", [lambda p: (), lambda p: (jnp.zeros_like(p), Packed(()))])
def test_a_rule_may_remember_nothing(start):
    tx = per_tensor_transform("sign", start, lambda g, p, found: (-0.1 * jnp.sign(g), found))
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1)
    tx.update(params, state, params)
