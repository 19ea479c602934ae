"""One table: every design, and what a user may do to an optax transformation."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from design_cases import (
    HORIZON,
    NAMES,
    NEEDS_PARAMS,
    NEEDS_VALUE,
    SEES_ALL,
    SMALL,
    TABLE,
    Case,
    assert_close,
    case,
    compiled,
    perturbed_theta,
    run,
    shapes_and_dtypes,
)
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2o.learned_optimizer import LearnedOptimizer
from l2o.optimizers import features
from l2o.optimizers.adafac_mlp import adafac_mlp
from l2o.optimizers.celo import celo
from l2o.optimizers.learnable import learnable_adam, learnable_sgd, learnable_sgdm
from l2o.optimizers.mlp_lopt import mlp_lopt
from l2o.optimizers.muon_mlp import muon_mlp
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.registry import DESIGNS, POLICIES
from l2o.testing import check_optimizer


def test_table_holds_every_design():
    assert set(TABLE) == set(DESIGNS)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_moves(name):
    c = case({"a": (), "b": (3,), "c": (2, 3), "d": (1, 2, 3, 2)})
    (updates,), _ = run(compiled(name), [c])
    for update in jax.tree.leaves(updates):
        assert np.all(np.isfinite(update)) and np.all(update != 0)


@pytest.mark.parametrize("name", NAMES)
def test_with_float64_enabled(name):
    """State and theta stay float32, and updates are in the dtypes of the gradients."""
    with jax.enable_x64(True):
        lopt, c = TABLE[name], case(SMALL)
        params = c.params | {"b": c.params["b"].astype(jnp.float64)}
        theta = lopt.init(jax.random.key(0))
        tx = lopt.transform(theta, horizon=HORIZON)
        update = lambda state, params: tx.update(params, state, params, value=jnp.float64(1.0))
        state = tx.init(params)
        (updates, after) = jax.eval_shape(update, state, params)
        assert shapes_and_dtypes(after) == shapes_and_dtypes(state)
        assert shapes_and_dtypes(updates) == shapes_and_dtypes(params)
        kept = jax.tree.leaves((theta, state))
        assert {x.dtype.name for x in kept} <= {"float32", "int32"}
        text = str(jax.make_jaxpr(update)(tx.init(c.params), c.params))
        assert not re.search(r"f64\[\d", text)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("celo", "per_tensor_controller") else n
        for n in NAMES
    ],
)
def test_the_table_of_common_behaviour(name):
    check_optimizer(TABLE[name], horizon=HORIZON, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SEES_ALL])
def test_inside_masked_and_partition(name):
    """Neighbours do not matter, and leaves of others are passed on or left alone."""
    cases = [case(SMALL, seed) for seed in range(2)]
    bare, _ = run(compiled(name), cases)
    masked, _ = run(optax.masked(compiled(name), {"a": True, "b": False}), cases)
    labels = {"a": "learned", "b": "frozen"}
    parts = {"learned": compiled(name), "frozen": optax.set_to_zero()}
    partitioned, _ = run(optax.partition(parts, labels), cases)
    for c, alone, m, p in zip(cases, bare, masked, partitioned, strict=True):
        assert_close(m["a"], alone["a"])
        assert_close(p["a"], alone["a"])
        assert_close(m["b"], c.grads["b"])
        assert_close(p["b"], jnp.zeros_like(c.grads["b"]))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_sharded_over_devices(name):
    c = case(SMALL)
    expected, _ = run(compiled(name), [c])
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
    split = NamedSharding(mesh, PartitionSpec("rows"))
    sharded = Case(*jax.device_put((c.grads, c.params), split), c.value)
    found, state = run(compiled(name), [sharded])
    assert_close(found, expected)
    assert found[0]["a"].sharding.is_equivalent_to(split, 2)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("name", NAMES)
def test_equal_shapes_sharded_otherwise_under_explicit_axes(name):
    """They are not stacked: shardings are parts of their types."""
    specs = {"a": ("rows", None), "b": (None, "rows"), "c": (None, None), "d": ("rows", None)}
    c = case(dict.fromkeys(specs, (4, 4)))
    expected, _ = run(compiled(name), [c])
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = {k: NamedSharding(mesh, PartitionSpec(*spec)) for k, spec in specs.items()}
        sharded = Case(*jax.device_put((c.grads, c.params), (split, split)), c.value)
        found, _ = run(compiled(name), [sharded])
    assert_close(found, expected)
    assert all(found[0][k].sharding.is_equivalent_to(split[k], 2) for k in specs)


@pytest.mark.parametrize("name", NAMES)
def test_nnx_optimizer(name):
    """Three updates: the accumulators, too, must survive between them."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    c = case({"bias": (2,), "kernel": (3, 2)})
    tx = compiled(name)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    state = tx.init(params)
    for scale in (1.0, -0.5, 2.0):
        scaled = jax.tree.map(lambda g, scale=scale: scale * g, c.grads)
        grads = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(grads, scaled)
        optimizer.update(model, grads, value=c.value)
        updates, state = tx.update(scaled, state, params, value=c.value)
        params = optax.apply_updates(params, updates)
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)


@pytest.mark.parametrize("name", NAMES)
def test_train_state(name):
    """`apply_gradients` cannot pass the loss; a design that needs it says so, and how."""
    c = case(SMALL)
    state = TrainState.create(apply_fn=None, params=c.params, tx=compiled(name))
    (updates,), _ = run(compiled(name), [c])
    expected = optax.apply_updates(c.params, updates)
    if name in NEEDS_VALUE:
        message = rf"`value` is needed by {name}.*tx\.update\(grads, state, params, value=loss\)"
        with pytest.raises(ValueError, match=message):
            state.apply_gradients(grads=c.grads)
        updates, opt_state = state.tx.update(c.grads, state.opt_state, state.params, value=c.value)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
    else:
        state = state.apply_gradients(grads=c.grads)
    assert_close(state.params, expected)


@pytest.mark.parametrize("name", NEEDS_PARAMS)
def test_missing_params(name):
    c, tx = case(SMALL), compiled(name)
    message = rf"`params` is needed by {name}; got None\. Call `tx\.update\("
    with pytest.raises(ValueError, match=message):
        tx.update(c.grads, tx.init(c.params), value=c.value)


@pytest.mark.parametrize("name", ["celo", "nominal_mlp", *POLICIES])
def test_missing_horizon(name):
    with pytest.raises(ValueError, match=rf"`horizon` is needed by {name}.*horizon=1000"):
        TABLE[name].transform(perturbed_theta(name))


@pytest.mark.parametrize("name", NAMES)
def test_config_rebuilds_the_design(name):
    lopt = TABLE[name]
    config = json.loads(json.dumps(dict(lopt.config)))
    rebuilt = DESIGNS[name](**config)
    assert isinstance(rebuilt, LearnedOptimizer)
    assert rebuilt.name == name and dict(rebuilt.config) == config
    key = jax.random.key(3)
    assert_close(rebuilt.init(key), lopt.init(key), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("design", "option"),
    [
        *((d, o) for d in (mlp_lopt, adafac_mlp) for o in ("step_mult", "exp_mult")),
        (nominal_mlp, "rate"),
    ],
)
def test_an_option_changes_updates(design, option):
    c, updates = case({"b": (3,)}), []
    for value in (0.1, 0.5):
        lopt = design(**{option: value})
        theta = jax.tree.map(lambda t: t + 0.1, lopt.init(jax.random.key(0)))
        (found,), _ = run(lopt.transform(theta, horizon=HORIZON), [c])
        updates.append(found["b"])
    assert not np.allclose(*updates, rtol=1e-2)


@pytest.mark.parametrize(
    ("design", "option", "value", "message"),
    [
        (adafac_mlp, "hidden_size", 0, "`hidden_size` must be at least 1; got 0"),
        (mlp_lopt, "hidden_layers", -1, "`hidden_layers` must be at least 1; got -1"),
        (mlp_lopt, "step_mult", np.nan, "`step_mult` must be finite; got nan"),
        (celo, "width", -2, "`width` must be at least 1; got -2"),
        (nominal_mlp, "schedule_size", 0, "`schedule_size` must be at least 1; got 0"),
        (nominal_mlp, "rate", np.inf, "`rate` must be finite; got inf"),
    ],
)
def test_options_that_make_no_sense_are_refused(design, option, value, message):
    with pytest.raises(ValueError, match=message):
        design(**{option: value})


@pytest.mark.parametrize("horizon", [0, -5, 1.5, "100", True])
def test_a_horizon_that_is_no_number_of_steps_is_refused(horizon):
    lopt = nominal_mlp()
    with pytest.raises(ValueError, match="`horizon` must be a whole number of training steps"):
        lopt.transform(lopt.init(jax.random.key(0)), horizon=horizon)


@pytest.mark.parametrize("design", [adafac_mlp, celo])
def test_row_and_column_statistics_stand_behind_a_barrier(design):
    """Without it XLA does not compile these designs on GPUs."""

    def num_barriers(shape):
        lopt, c = design(), case({"a": shape})
        tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=HORIZON)
        update = lambda state: tx.update(c.grads, state, c.params, value=c.value)
        return str(jax.make_jaxpr(update)(tx.init(c.params))).count("optimization_barrier")

    assert num_barriers((2, 3)) == num_barriers((6,)) + 2  # one in each pass


def test_a_root_mean_square_stands_behind_a_barrier():
    """Without it XLA does not compile NominalMLP under PES on GPUs."""
    jaxpr = str(jax.make_jaxpr(features.rms_normalize)([jnp.ones((2, 3))]))
    assert jaxpr.index("rsqrt") < jaxpr.index("optimization_barrier") < jaxpr.rindex("mul")


@pytest.mark.parametrize(
    ("lopt", "count"),
    [
        (learnable_sgd(), 1),
        (learnable_sgdm(), 2),
        (learnable_adam(), 4),
        (mlp_lopt(), 1762),
        (adafac_mlp(), 197),
        (adafac_mlp(hidden_size=32), 2409),
        (celo(), 35_803),
        (muon_mlp(), 1068),
        (nominal_mlp(), 722),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_number_of_meta_parameters(lopt, count):
    theta = jax.eval_shape(lopt.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == count


@pytest.mark.parametrize("name", NAMES)
def test_past_the_horizon_training_goes_on(name):
    c = case(SMALL)
    updates, state = run(compiled(name), [c] * (HORIZON + 20))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, state)))
    last = [float(optax.tree.norm(update)) for update in updates]
    assert min(last[HORIZON:]) > 0.01 * last[HORIZON - 1]
