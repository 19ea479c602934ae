"""The public checks pass everything that comes with l2o, and catch what is wrong."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import user_module

from l2o import leaves
from l2o.learned_optimizer import LearnedOptimizer
from l2o.registry import TASKS, task_family
from l2o.testing import check_optimizer, check_task

QUICK = {"quadratic"}
"""What is checked by default; the tables of `tests/tasks` hold all."""


def all_but_quick_slow(names):
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", all_but_quick_slow(sorted(TASKS)))
def test_tasks(name):
    try:
        family = task_family(name)
    except ValueError as error:
        pytest.skip(str(error))  # a test may not fetch data
    if name == "minilm_whole":
        pytest.skip("24 copies of MiniLM under Adam; a small one is in tests/tasks/test_minilm.py")
    for task in (family.train[0], *family.evaluation[:1]):
        check_task(task, num_steps=10 if name.startswith("minilm") else 100)


def test_a_design_of_a_users_own():
    """Theirs is rebuilt by its constructor, if they give it."""
    design = lambda decay=0.9: momentum(config={"decay": decay})
    check_optimizer(design(), design=design)
    with pytest.raises(AssertionError, match="`lopt` momentum: a release file fails"):
        check_optimizer(design(), design=lambda rate=0.1: design())


# What is wrong with a task

counter = itertools.count(1.0)


def good_task():
    def metrics(params, shift, minimum):
        del shift
        return {"distance": jnp.linalg.norm(params["x"] - minimum)}

    return dataclasses.replace(user_module.bowl(), metrics=metrics, metric_caps={"distance": 30.0})


def replace_batch(shift):
    def batch(key, instance, data, split):
        del instance, data
        return shift(split) * jax.random.normal(key, (3,))

    return batch


BAD_TASKS = {
    "loss differs between two calls": {
        "loss": lambda params, shift, minimum: jnp.sum(params["x"] ** 2) + next(counter)
    },
    "batch differs between two calls": {
        "batch": lambda key, minimum, data, split: np.float32(next(counter)) * jnp.ones(3)
    },
    "init differs between two calls": {
        "init": lambda key, minimum: {"x": jnp.full(3, next(counter))}
    },
    "gradient is not finite at params['x']": {
        "loss": lambda params, shift, minimum: jnp.sum(jnp.sqrt(0.0 * params["x"]))
    },
    "loss on a valid batch is not finite": {
        "batch": replace_batch(lambda split: jnp.nan if split == "valid" else 0.1)
    },
    "the loss must be a float scalar": {"loss": lambda params, shift, minimum: params["x"]},
    "the key changes neither instance, parameters nor batch": {
        "sample": lambda key: jnp.ones(3),
        "init": lambda key, minimum: {"x": jnp.zeros(3)},
        "batch": lambda key, minimum, data, split: jnp.zeros(3),
    },
    "a test batch is not like a train batch: it is float32[2], not float32[3]": {
        "batch": lambda key, minimum, data, split: jax.random.normal(key, (2 + (split != "test"),)),
        "loss": lambda params, shift, minimum: jnp.sum((params["x"] - minimum - shift[0]) ** 2),
    },
    "is not below its `loss_cap`, 0.001": {"loss_cap": 0.001},
    "`maximized` of task bowl names accuracy, which `metrics` lacks; it has distance": {
        "maximized": frozenset({"accuracy"})
    },
    "`metric_caps` of task bowl has distance=0.1, which the metric exceeds": {
        "metric_caps": {"distance": 0.1}
    },
    "metric distance must be a finite scalar; got float32(3,)": {
        "metrics": lambda params, shift, minimum: {"distance": params["x"] - minimum}
    },
    "metric distance must be a finite scalar; got float32(), on": {
        "metrics": lambda params, shift, minimum: {"distance": jnp.nan * params["x"][0]}
    },
    "the loss of all valid rows is not that of batches in the mean": {
        "all_rows": lambda minimum, data, split: jnp.full(3, 5.0 * (split == "valid"))
    },
    "`all_rows` of task bowl: metric distance of all train rows must be a finite scalar": {
        "metrics": lambda params, shift, minimum: {
            "distance": jnp.where(shift[0] == 0.0, jnp.nan, 1.0)
        },
        "all_rows": lambda minimum, data, split: jnp.zeros(3),
    },
    "does not change the loss at fraction=0.3": {"shrink": lambda batch, fraction: batch},
    "must keep shapes and dtypes: it is float32[1], not float32[3]": {
        "shrink": lambda batch, fraction: batch[:1]
    },
    "changes the loss at fraction=1.0": {"shrink": lambda batch, fraction: batch + 1.0},
    "makes the loss infinite or NaN at fraction=0.000001": {
        "shrink": lambda batch, fraction: jnp.where(fraction < 1e-3, jnp.nan, fraction) * batch
    },
    "steps of Adam do not lower the loss": {
        "loss": lambda params, shift, minimum: 5.0 + shift[0] - 0.0 * jnp.sum(params["x"])
    },
    "gradient is always zero at params['unused']": {
        "init": lambda key, minimum: {"x": jax.random.normal(key, (3,)), "unused": jnp.ones(2)}
    },
}


def test_a_good_task_passes():
    check_task(good_task(), num_steps=50)


@pytest.mark.parametrize("message", BAD_TASKS)
def test_bad_tasks_are_caught(message):
    with pytest.raises((AssertionError, ValueError)) as caught:
        check_task(dataclasses.replace(good_task(), **BAD_TASKS[message]), num_steps=20)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_that_vmap_changes_is_caught():
    @jax.custom_batching.custom_vmap
    def off(x):
        return x

    @off.def_vmap
    def _(axis_size, in_batched, x):
        del axis_size
        return x + 1.0, in_batched[0]

    def loss(params, shift, minimum):
        return jnp.sum((params["x"] - minimum) ** 2) + jax.lax.stop_gradient(off(shift[0]))

    with pytest.raises(AssertionError, match=r"alone and .* under vmap"):
        check_task(dataclasses.replace(good_task(), loss=loss))


# What is wrong with a learned optimizer


def momentum(
    spoil_updates=lambda updates, grads, params, value: updates,
    spoil_state=lambda state, grads: state,
    spoil_init=lambda state, theta: state,
    rate=lambda theta: jnp.exp(theta["log_rate"]),
    **changes,
) -> LearnedOptimizer:
    """Momentum with a learned rate, and what may be wrong with it."""

    def transform(theta, *, horizon=None):
        del horizon

        def init(params):
            return spoil_init(jax.tree.map(lambda p: jnp.zeros(p.shape), params), theta)

        def update(grads, state, params=None, *, value=None, **extra_args):
            del extra_args
            state = jax.tree.map(lambda m, g: 0.9 * m + g.astype(jnp.float32), state, grads)
            updates = jax.tree.map(lambda m, g: (-rate(theta) * m).astype(g.dtype), state, grads)
            return spoil_updates(updates, grads, params, value), spoil_state(state, grads)

        tx = optax.GradientTransformationExtraArgs(init, update)
        return leaves.on_any_tree(tx, "momentum")

    good = LearnedOptimizer("momentum", lambda key: {"log_rate": jnp.log(0.01)}, transform)
    return dataclasses.replace(good, **changes)


def each(function):
    """A function of a tensor, of a tree."""
    return lambda tree, *others: jax.tree.map(lambda x: function(x), tree)


def halved_by_bfloat16(state, grads):
    """Accumulators that are stored in the dtype of the gradients."""
    return jax.tree.map(lambda m, g: m.astype(g.dtype).astype(jnp.float32), state, grads)


BAD_DESIGNS = {
    "the state must stay as `init` makes it": {"spoil_state": each(lambda m: m.astype("float16"))},
    "updates must be like the gradients": {"spoil_updates": each(lambda u: u[None])},
    "is float32[1, 2, 3, 2], not bfloat16[1, 2, 3, 2]": {
        "spoil_updates": each(lambda u: u.astype("float32"))
    },
    "the state holds an array of theta": {
        "spoil_init": lambda state, theta: (
            jax.tree.map(lambda m: theta["log_rate"], state) if "kernel" not in state else state
        )
    },
    "the update of the kernel is not finite": {"spoil_updates": each(lambda u: u * jnp.nan)},
    "the update of the kernel is zero": {"spoil_updates": each(jnp.zeros_like)},
    "zero gradients give updates or a state that is not finite": {
        "spoil_updates": each(lambda u: u / jnp.linalg.norm(u))
    },
    "`update` differs between two calls": {"spoil_updates": each(lambda u: u * next(counter))},
    "`init` gives another theta": {"init": lambda key: {"log_rate": jnp.float32(next(counter))}},
    "theta must be finite and floating point; got int32 at theta['n']": {
        "init": lambda key: {"log_rate": jnp.log(0.01), "n": jnp.int32(3)}
    },
    "four random thetas give the same updates": {"rate": lambda theta: 0.1},
    "vmap over theta fails (": {"rate": lambda theta: float(theta["log_rate"])},
    "bfloat16 parameters give another state": {"spoil_state": halved_by_bfloat16},
    "update of float32 parameters fails (": {
        "spoil_updates": lambda updates, grads, params, value: updates if value > 1.0 else grads
    },
    "optax.masked fails (": {
        "spoil_updates": lambda updates, grads, params, value: (
            updates | {"b": 1.0 * updates["b"]} if "b" in updates else updates
        )
    },
    "without `params` it fails (": {
        "spoil_updates": lambda updates, grads, params, value: jax.tree.map(
            lambda u, p: u - (1e-3 * p).astype(u.dtype), updates, params
        )
    },
    "without `value` it fails (": {
        "spoil_updates": lambda updates, grads, params, value: each(
            lambda u: u * value.astype(u.dtype)
        )(updates)
    },
    "a loss of nan gives updates that are not finite": {
        "spoil_updates": lambda updates, grads, params, value: (
            updates if value is None else each(lambda u: u * value.astype(u.dtype))(updates)
        )
    },
    "a release file fails (ValueError: `summary` and the configuration": {
        "config": {"activation": jnp.tanh}
    },
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    """A node that flax.serialization does not know."""

    x: jax.Array


def remembering(first, then=lambda memory: memory) -> LearnedOptimizer:
    """Gradient descent that remembers more than it should."""

    def transform(theta, *, horizon=None):
        del horizon

        def update(grads, state, params=None, **extra_args):
            del params, extra_args
            rate = jnp.exp(theta["log_rate"])
            return jax.tree.map(lambda g: (-rate * g).astype(g.dtype), grads), then(state)

        tx = optax.GradientTransformationExtraArgs(first, update)
        return leaves.on_any_tree(tx, "remembering")

    return LearnedOptimizer("remembering", lambda key: {"log_rate": jnp.log(0.01)}, transform)


BAD_MEMORIES = {
    "the state holds an array twice": {"first": lambda params: 2 * [jnp.zeros(3)]},
    "the state holds an array of the parameters": {
        "first": lambda params: jax.tree.map(lambda p: p, params)
    },
    "an accumulator of a parameter of shape (64,) has shape (3, 64)": {
        "first": lambda params: jax.tree.map(lambda p: jnp.zeros((3, *p.shape)), params)
    },
    "an array of shape (3136,) grows with the parameters": {
        "first": lambda params: jnp.zeros(sum(p.size for p in jax.tree.leaves(params)))
    },
    "optax.tree.map_params fails (": {
        "first": lambda params: [jnp.zeros(p.shape) for p in jax.tree.leaves(params)]
    },
    "the counter at state['count'] overflows": {
        "first": lambda params: {"count": jnp.zeros((), jnp.int32)},
        "then": lambda memory: {"count": memory["count"] + 1},
    },
    "flax.serialization fails (": {"first": lambda params: Box(jnp.zeros(3))},
}


@pytest.mark.parametrize("message", BAD_MEMORIES)
def test_bad_memories_are_caught(message):
    with pytest.raises(AssertionError) as caught:
        check_optimizer(remembering(**BAD_MEMORIES[message]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_good_memory_passes():
    count = lambda memory: {"count": optax.safe_increment(memory["count"])}
    check_optimizer(remembering(lambda params: {"count": jnp.zeros((), jnp.int32)}, count))


def test_a_good_design_passes():
    check_optimizer(momentum())


@pytest.mark.parametrize("message", BAD_DESIGNS)
def test_bad_designs_are_caught(message):
    with pytest.raises(AssertionError) as caught:
        check_optimizer(momentum(**BAD_DESIGNS[message]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


# What is wrong with the edge of a design: a function of it, and what takes its place.


def last_loss() -> LearnedOptimizer:
    """Gradient descent that remembers the last loss and knows real numbers alone."""

    def transform(theta, *, horizon=None):
        del horizon

        def update(grads, state, params=None, *, value=None, **extra_args):
            del params, extra_args
            updates = jax.tree.map(
                lambda g: (-jnp.exp(theta["log_rate"]) * jnp.real(g)).astype(jnp.real(g).dtype),
                grads,
            )
            return updates, state if value is None else jnp.asarray(value, jnp.float32)

        tx = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0.0), update)
        return leaves.on_any_tree(tx, "last_loss")

    return LearnedOptimizer("last_loss", lambda key: {"log_rate": jnp.log(0.01)}, transform)


BAD_EDGES = {
    "leaves that are no numbers fail (": (momentum, "numbers_of", lambda tree, *_: tree),
    "the imaginary parts of complex leaves stay": (last_loss, "check_real", lambda *_: None),
    "a gradient of inf in float32 gives updates or a state not finite": (
        momentum,
        "without_extremes",
        lambda g: jnp.where(jnp.abs(g) == 1e20, 0.0, g).astype(g.dtype),
    ),
    "10 steps after a gradient of 1e+20 in float32 updates are": (
        momentum,
        "without_extremes",
        jnp.asarray,
    ),
    "a loss Array([1.], dtype=float32) changes the state": (
        last_loss,
        "scalar",
        lambda value, name: value,
    ),
}


@pytest.mark.parametrize("message", BAD_EDGES)
def test_bad_edges_are_caught(message, monkeypatch):
    design, name, function = BAD_EDGES[message]
    monkeypatch.setattr(leaves, name, function)
    with pytest.raises(AssertionError) as caught:
        check_optimizer(design())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_design_of_the_bad_edges_passes():
    check_optimizer(last_loss())
