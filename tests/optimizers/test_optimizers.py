"""One table: every design, and what a user may do to an optax transformation."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2o.learned_optimizer import LearnedOptimizer
from l2o.optimizers import features, nets
from l2o.optimizers.adafac_mlp import adafac_mlp
from l2o.optimizers.celo import celo
from l2o.optimizers.learnable import learnable_adam, learnable_sgd, learnable_sgdm
from l2o.optimizers.mlp_lopt import mlp_lopt
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.optimizers.per_tensor import as_float32
from l2o.policies.optimizer_selector import optimizer_selector
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler
from l2o.registry import DESIGNS, POLICIES

TABLE = {
    "learnable_sgd": learnable_sgd(learning_rate=0.2),
    "learnable_sgdm": learnable_sgdm(learning_rate=0.1, momentum=0.8),
    "learnable_adam": learnable_adam(learning_rate=0.1),
    "mlp_lopt": mlp_lopt(hidden_size=10, step_mult=0.1),
    "adafac_mlp": adafac_mlp(hidden_size=2, step_mult=0.1),
    "celo": celo(hidden_size=3, width=2),
    "nominal_mlp": nominal_mlp(rate=0.1, direction_size=2, schedule_size=4),
    "scheduler": scheduler(learning_rate=0.2, action_interval=2, core="gru", hidden_size=3),
    "per_tensor_controller": per_tensor_controller(
        "adam", ["b1", "weight_decay"], action_interval=1, hidden_size=3
    ),
    "optimizer_selector": optimizer_selector(
        ["sgdm", "adam"], [0.3, 0.2], action_interval=1, hidden_size=3
    ),
}
"""Narrow variants, but for mlp_lopt, so that layers of both kinds are covered."""

NAMES = list(TABLE)
NEEDS_PARAMS = ["mlp_lopt", "adafac_mlp", "celo", "nominal_mlp", *POLICIES]
NEEDS_VALUE = ["celo", "nominal_mlp"]
SEES_ALL = ["scheduler", "optimizer_selector"]
"""One agent for all tensors: what it does to one depends on the others."""
HORIZON = 10
SHAPES = {"a": (), "b": (3,), "c": (2, 3), "d": (1, 2, 3, 2)}
SMALL = {"a": (2, 3), "b": (2,)}


class Case(NamedTuple):
    """Arguments of one update."""

    grads: dict[str, jax.Array]
    params: dict[str, jax.Array]
    value: jax.Array


def case(shapes: dict, seed: int = 0, dtype=jnp.float32) -> Case:
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)
    return Case(
        grads={name: draw(shape) for name, shape in shapes.items()},
        params={name: draw(shape) for name, shape in shapes.items()},
        value=jnp.float32(1.5 + seed),
    )


@functools.cache
def theta_of(name: str, seed: int = 2):
    """Perturbed, as some designs start at zero."""
    k_init, k_noise = jax.random.split(jax.random.key(seed))
    theta = TABLE[name].init(k_init)
    noise = optax.tree.random_like(k_noise, theta)
    return jax.tree.map(lambda t, z: t + 0.3 * z, theta, noise)


@functools.cache
def compiled(name: str) -> optax.GradientTransformationExtraArgs:
    """The transformation with a jitted update: programs are shared between tests."""
    tx = TABLE[name].transform(theta_of(name), horizon=HORIZON)
    return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


def run(tx, cases: list[Case], **extra):
    """Updates of consecutive steps, and the last state."""
    state, found = tx.init(cases[0].params), []
    for c in cases:
        updates, state = tx.update(c.grads, state, c.params, value=c.value, **extra)
        found.append(updates)
    return found, state


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


def shapes_and_dtypes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def test_table_holds_every_design():
    assert set(TABLE) == set(DESIGNS)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_structure_shapes_and_dtypes(name):
    tx, first = compiled(name), case(SHAPES)
    state = tx.init(first.params)
    updates, after = tx.update(first.grads, state, first.params, value=first.value)
    assert shapes_and_dtypes(updates) == shapes_and_dtypes(first.params)
    assert shapes_and_dtypes(after) == shapes_and_dtypes(state)
    for update in jax.tree.leaves(updates):
        assert np.all(np.isfinite(update)) and np.all(update != 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_holds_no_buffer_of_theta(name):
    """Or a loop that donates its state would delete theta."""
    theta = theta_of(name)
    state = TABLE[name].transform(theta, horizon=HORIZON).init(case(SMALL).params)
    pointers = lambda tree: {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) if x.size}
    assert not pointers(theta) & pointers(state)


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_give_finite_updates(name):
    zero = case(SHAPES)
    zero = zero._replace(grads=jax.tree.map(jnp.zeros_like, zero.grads), value=jnp.float32(0.0))
    found, state = run(compiled(name), [zero, zero, zero])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((found, state)))


@pytest.mark.parametrize("name", NAMES)
def test_jit_changes_nothing_and_unknown_extra_arguments_are_ignored(name):
    plain = TABLE[name].transform(theta_of(name), horizon=HORIZON)
    cases = [case(SMALL, seed) for seed in range(2)]
    expected = run(plain, cases, is_last=jnp.zeros(2))
    assert_close(run(compiled(name), cases), expected, rtol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_theta(name):
    thetas = [theta_of(name, seed) for seed in (1, 2, 3, 4)]  # a selector has but two
    c = case({"b": (3,)})

    def first_update(theta):
        tx = TABLE[name].transform(theta, horizon=HORIZON)
        return tx.update(c.grads, tx.init(c.params), c.params, value=c.value)[0]["b"]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)
    together = jax.jit(jax.vmap(first_update))(stacked)
    apart = jax.jit(first_update)
    assert_close(together, jnp.stack([apart(theta) for theta in thetas]))
    assert not all(np.allclose(together[0], other) for other in together[1:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("params", [{}, {"frozen": None, "b": {}}, ()])
def test_trees_without_leaves(name, params):
    tx = TABLE[name].transform(theta_of(name), horizon=HORIZON)
    updates, _ = tx.update(params, tx.init(params), params, value=jnp.float32(1.0))
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_parameters_have_float32_accumulators(name):
    """The state after 25 steps on a constant gradient is that of float32 parameters.

    An accumulator of dtype bfloat16 would stall, or be off by a percent.
    """
    half = case(SMALL, dtype=jnp.bfloat16)
    full = Case(*jax.tree.map(lambda x: x.astype(jnp.float32), half))
    update = compiled(name).update
    states = {}
    for c in (half, full):
        state = compiled(name).init(c.params)
        for _ in range(25):
            updates, state = update(c.grads, state, c.params, value=c.value)
        assert shapes_and_dtypes(updates) == shapes_and_dtypes(c.grads)
        states[c.params["a"].dtype.name] = state
    assert_close(states["bfloat16"], states["float32"], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inside_chain(name):
    cases = [case(SMALL, seed) for seed in range(2)]
    bare, _ = run(compiled(name), cases)
    chained = optax.chain(optax.clip_by_global_norm(1e6), compiled(name), optax.scale(0.5))
    found, _ = run(chained, cases)
    assert_close(found, jax.tree.map(lambda u: 0.5 * u, bare))


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
def test_inside_multi_steps(name):
    first, second = case(SMALL, 0), case(SMALL, 1)
    multi = optax.MultiSteps(compiled(name), every_k_schedule=2)
    found, _ = run(multi, [first, second._replace(params=first.params)])
    mean = jax.tree.map(lambda x, y: (x + y) / 2, first.grads, second.grads)
    expected, _ = run(compiled(name), [Case(mean, first.params, second.value)])
    assert_close(found[0], jax.tree.map(jnp.zeros_like, first.grads))
    assert_close(found[1], expected[0], rtol=1e-4)


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
        tx = TABLE["adafac_mlp"].transform(theta_of("adafac_mlp"))
        compiled = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
        return compiled.as_text().count(" fusion(")

    one, few, many = map(kernels, (1, 8, 16))
    assert (many - few) / 8 < one / 2


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
        TABLE[name].transform(theta_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_config_rebuilds_the_design(name):
    lopt = TABLE[name]
    config = json.loads(json.dumps(dict(lopt.config)))
    rebuilt = DESIGNS[name](**config)
    assert isinstance(rebuilt, LearnedOptimizer)
    assert rebuilt.name == name and dict(rebuilt.config) == config
    key = jax.random.key(3)
    assert_close(rebuilt.init(key), lopt.init(key), rtol=0, atol=0)
    c = case({"b": (3,)})
    found = run(rebuilt.transform(theta_of(name), horizon=HORIZON), [c])
    default = run(DESIGNS[name]().transform(DESIGNS[name]().init(key), horizon=HORIZON), [c])
    assert_close(found, run(compiled(name), [c]), rtol=2e-4)
    assert not np.allclose(found[0][0]["b"], default[0][0]["b"], rtol=1e-3)


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
        (nominal_mlp(), 722),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_number_of_meta_parameters(lopt, count):
    theta = jax.eval_shape(lopt.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == count


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learnable_sgd", optax.sgd(0.2)),
        ("learnable_sgdm", optax.sgd(0.1, momentum=0.8)),
        ("learnable_adam", optax.adam(0.1)),
    ],
)
def test_learnable_designs_start_as_their_namesakes(name, expected, key):
    cases = [case(SMALL, seed) for seed in range(3)]
    found, _ = run(TABLE[name].transform(TABLE[name].init(key)), cases)
    assert_close(found, run(optax.with_extra_args_support(expected), cases)[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learnable_sgd(learning_rate=0.0), "`learning_rate` must be positive; got 0.0"),
        (lambda: learnable_sgdm(momentum=1.0), r"`momentum` must be in \[0, 1\); got 1.0"),
        (lambda: learnable_adam(b2=-0.1), r"`b2` must be in \[0, 1\); got -0.1"),
        (lambda: learnable_adam(eps=-1.0), "`eps` must be positive; got -1.0"),
    ],
)
def test_bad_hyperparameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_adam_can_be_differentiated_where_a_gradient_is_always_zero(key):
    """As those of pixels that no image uses are; the slope of Adam's root is infinite there."""
    lopt = learnable_adam(learning_rate=0.1)

    def final_loss(theta):
        tx, x = lopt.transform(theta), jnp.array([1.0, 2.0])
        state = tx.init(x)
        for _ in range(2):
            updates, state = tx.update(jnp.array([2.0, 0.0]) * x, state, x)
            x = optax.apply_updates(x, updates)
        return x[0] ** 2

    gradient = jax.jit(jax.grad(final_loss))(lopt.init(key))
    assert np.all(np.isfinite(jax.tree.leaves(gradient)))
    # Two steps of almost exactly the rate, which falls with it: d(1 - 2r)²/d ln r = -4r(1 - 2r).
    assert gradient["log_learning_rate"] == pytest.approx(-4 * 0.1 * 0.8, rel=0.02)


def test_untrained_nominal_mlp_is_a_scheduled_sign_step(key):
    """On a constant gradient Adam's direction is the sign, and the rate falls by 1 - t/T."""
    lopt, c = nominal_mlp(rate=0.3), case(SMALL)
    found, _ = run(lopt.transform(lopt.init(key), horizon=HORIZON), [c, c, c])
    for t, updates in enumerate(found):
        rate = 0.3 * (1 - t / HORIZON)
        expected = {name: -rate * jnp.sign(g) for name, g in c.grads.items()}
        assert_close(updates, expected, rtol=1e-3)


# Against the matrix form


def matrix_inputs(name, g, p, accumulated, count):
    """The published features as a matrix, (numbers, inputs), in float64."""
    rsqrt = lambda x, eps: 1.0 / np.sqrt(x + eps)
    if name == "mlp_lopt":
        columns = [g, p, *accumulated["momenta"]]
    else:
        m, (v,) = accumulated["momenta"], accumulated["second"]
        rows, columns_ = accumulated["rows"], accumulated["columns"]
        r = rsqrt(v, 1e-6)
        if g.ndim < 2:
            factors = [1.0 / np.sqrt(np.maximum(d + 1e-9, 1e-9)) for d in rows]
            of_momenta = [rsqrt(d, 1e-6 if name == "adafac_mlp" else 0.0) for d in rows]
        else:
            second, _ = features.factored_axes(g.shape)
            inverse = lambda x: 1.0 / np.sqrt(np.maximum(x, 1e-9))
            factors = of_momenta = [
                inverse(row / (row.mean(axis=second, keepdims=True) + 1e-9)) * inverse(column)
                for row, column in zip(rows, columns_, strict=True)
            ]
        bounded = [] if name == "adafac_mlp" else [np.clip(g, -0.1, 0.1)]
        scaled = [] if name == "adafac_mlp" else [g * r]
        columns = [g, *bounded, p, *m, v, *[x * r for x in m], r, *[g * f for f in factors]]
        columns += [*scaled, *rows, *columns_, *[rsqrt(x, 1e-8) for x in (*rows, *columns_)]]
        columns += [x * f for x, f in zip(m, of_momenta, strict=True)]
    whole = np.stack([np.broadcast_to(x, g.shape).ravel() for x in columns], axis=1)
    whole = whole / np.sqrt(1e-5 + np.mean(whole**2, axis=0))
    if name == "celo":
        return whole
    progress = np.tanh(count / np.array(features.PROGRESS_SCALES) - 1.0)
    return np.hstack([whole, np.tile(progress, (len(whole), 1))])


def accumulate_plainly(name, g, accumulated):
    moved = lambda averages, x, decays: [
        b * a + (1.0 - b) * x for a, b in zip(averages, decays, strict=True)
    ]
    if name == "mlp_lopt":
        decays = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
        return {"momenta": moved(accumulated["momenta"], g, decays)}
    square, axes = g**2 + 1e-30, features.factored_axes(g.shape)
    row = square if axes is None else square.mean(axis=axes[1], keepdims=True)
    column = square if axes is None else square.mean(axis=axes[0], keepdims=True)
    decays = (0.9, 0.99, 0.999)
    return {
        "momenta": moved(accumulated["momenta"], g, decays),
        "second": moved(accumulated["second"], g**2, (0.999,)),
        "rows": moved(accumulated["rows"], row, decays),
        "columns": moved(accumulated["columns"], column, decays),
    }


@pytest.mark.parametrize("name", ["adafac_mlp", "celo", "mlp_lopt"])
def test_updates_equal_the_matrix_form(name, key):
    """Features stacked to a matrix and multiplied by that of the weights, in float64."""
    lopt = celo(scheduled=False) if name == "celo" else DESIGNS[name]()
    theta = lopt.init(key)
    net = theta if name == "mlp_lopt" else theta["mlp"]
    shapes = {"a": (7, 5), "b": (5,), "c": (5,), "d": (2, 3, 4, 2), "e": (7, 5)}
    rng = np.random.default_rng(0)
    params = {k: rng.standard_normal(shape) for k, shape in shapes.items()}
    counts = {"momenta": 6 if name == "mlp_lopt" else 3, "second": 1, "rows": 3, "columns": 3}
    accumulated = {k: {n: [0.0] * c for n, c in counts.items()} for k in shapes}
    tx = lopt.transform(theta)
    state, update = tx.init(as_float32(params)), jax.jit(tx.update)
    for count in range(3):
        grads = {k: 0.1 * rng.standard_normal(shape) for k, shape in shapes.items()}
        if name == "celo":  # where its bounds and the lack of one are seen
            grads |= {"b": 1e-4 * grads["b"], "c": grads["c"] * np.array([1e5, 1.0, 1.0, 1.0, 1e4])}
        found, state = update(as_float32(grads), state, as_float32(params))
        for k, g in grads.items():
            g = np.clip(g, -1e3, 1e3) if name == "celo" else g
            accumulated[k] = accumulate_plainly(name, g, accumulated[k])
            x = matrix_inputs(name, g, params[k], accumulated[k], count)
            for i in range(3):
                x = x @ np.asarray(net[f"w{i}"], np.float64) + np.asarray(net[f"b{i}"])
                x = np.maximum(x, 0.0) if i < 2 else x
            expected = -1e-3 * x[:, 0] * np.exp(1e-3 * x[:, 1])
            if name == "celo":
                expected *= np.sqrt(np.mean(params[k] ** 2) + 1e-9)
            largest = np.max(np.abs(expected))
            np.testing.assert_allclose(np.ravel(found[k]), expected, rtol=1e-4, atol=1e-5 * largest)


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
