"""Actors, and policies as learned optimizers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import noisy_theta
from user_module import bowl

import l2o
from l2o import registry, release
from l2o.distributed.mesh import population_mesh
from l2o.estimators.nres import nres
from l2o.optimizers import nets
from l2o.policies.optimizer_selector import optimizer_selector
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler
from l2o.problem import inner_problem
from l2o.registry import POLICIES


def test_gru_against_flax():
    from flax import nnx

    net = nets.gru_init(jax.random.key(0), 3, 4)
    cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...] = net["w_in"]
    cell.dense_i.bias[...] = 0.3 * jnp.arange(12.0)
    cell.dense_h.kernel[...] = net["w_h"]
    x, h = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 0.2, -0.3, 0.4])
    expected, _ = cell(h, x)
    found = nets.gru_apply(net | {"b": 0.3 * jnp.arange(12.0)}, x, h)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_evolution_meta_trains_policies_on_devices(name):
    """NRES on two devices is that on one."""
    lopt = POLICIES[name](action_interval=2, hidden_size=4)
    problem = inner_problem(bowl(), lopt, horizon=8, window=4)
    found = []
    for devices in (None, population_mesh(2)):
        estimator = nres(problem, num_pairs=2, std=0.1, mesh=devices)
        theta = lopt.init(jax.random.key(0))
        state = jax.jit(estimator.init)(jax.random.key(1), theta)
        gradient, *_ = jax.jit(estimator.estimate)(jax.random.key(2), theta, state, ())
        found.append(gradient)
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("core", ["mlp", "gru"])
def test_agents_with_networks_of_their_own(core):
    make = lambda **k: per_tensor_controller("sgdm", [], core=core, hidden_size=3, **k).policy
    shared, separate = make(), make(networks=2)
    theta = noisy_theta(per_tensor_controller("sgdm", [], core=core, hidden_size=3))
    seen = jax.random.normal(jax.random.key(1), (2, 29))
    twice = jax.tree.map(lambda t: jnp.stack([t, t]), theta)
    expected, carry = shared.actor.apply(theta, seen, shared.actor.start(2))
    found, own_carry = separate.actor.apply(twice, seen, separate.actor.start(2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*map(np.asarray, (own_carry, carry)), rtol=1e-5)
    other = jax.tree.map(lambda t: t.at[1].add(1.0), twice)
    changed, _ = separate.actor.apply(other, seen, separate.actor.start(2))
    np.testing.assert_allclose(changed[0], found[0], rtol=1e-6)
    assert np.all(changed[1] != found[1])
    drawn = separate.actor.init(jax.random.key(0))
    assert all(leaf.shape[0] == 2 for leaf in drawn.values())
    assert any(np.any(leaf[0] != leaf[1]) for leaf in drawn.values())
    with pytest.raises(ValueError, match="`networks` must be 1 or one for each of the 3 tensors"):
        separate.controlled.init({k: jnp.ones(2) for k in "abc"}, 10)


@pytest.mark.parametrize("name", POLICIES)
def test_an_update_compiles_once(name):
    lopt = POLICIES[name]()
    tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=100)
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(3):
        _, state = update(params, state, params, value=jnp.float32(1.0))
    assert update._cache_size() == 1


@pytest.mark.parametrize("size", [np.nan, np.inf, 1e30])
def test_a_run_that_has_blown_up_is_seen_as_finite(size):
    for lopt in (scheduler(), per_tensor_controller(), optimizer_selector()):
        controlled = lopt.policy.controlled
        params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        blown = jax.tree.map(lambda p: size * p, params)
        state = controlled.init(params, 100)
        for _ in range(3):
            _, state = controlled.update(blown, state, blown, jnp.float32(size))
            seen = controlled.observe(state)
            assert np.all(np.isfinite(seen)) and np.max(np.abs(seen)) <= 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scheduler(lowest=1.0, highest=0.1), "`lowest` and `highest` must make a range"),
        (lambda: scheduler(learning_rate=9.0), "`learning_rate` must be in the range 0.0001 to 3"),
        (lambda: scheduler(base="lion"), "`base` must be a known name; got lion. Try adam, digits"),
        (lambda: scheduler(base="optax:lions"), "`base` must be module:attribute that can be"),
        (lambda: scheduler(base="math:sin"), "`base` must be a function that takes learning_rate"),
        (
            lambda: scheduler(base="optax.contrib:dpsgd"),
            "must be a function that takes learning_rate",
        ),
        (
            lambda: scheduler(base="optax:lbfgs"),
            "takes steps from gradients.*got optax:lbfgs .*grad",
        ),
        (
            lambda: scheduler(base="digits", hyperparameters=["b1"]),
            "`hyperparameters` of digits must be among batch_fr",
        ),
        (
            lambda: per_tensor_controller(hyperparameters=["batch_fraction"]),
            "`hyperparameters` of sgdm must be among mome",
        ),
        (lambda: per_tensor_controller(networks=0), "`networks` must be at least 1; got 0"),
        (lambda: scheduler(action_interval=0), "`action_interval` must be at least 1; got 0"),
        (lambda: scheduler(head="categorical"), "`head` must be gaussian or squashed"),
        (lambda: scheduler(core="lstm"), "`core` must be mlp or gru; got lstm"),
        (lambda: scheduler(step=0.0), "`step` must be positive; got 0.0"),
        (
            lambda: per_tensor_controller("sgdm", ["b1"]),
            "`hyperparameters` of sgdm must be among momentum",
        ),
        (
            lambda: per_tensor_controller("adam", ["b1", "b1"]),
            "`hyperparameters` must differ; got b1, b1",
        ),
        (
            lambda: optimizer_selector(["sgdm"] * 2, [0.1, np.inf]),
            "must be positive and finite; got inf",
        ),
        (
            lambda: optimizer_selector(["sgdm"], [0.1, 0.2]),
            "`learning_rates` must be one for each of the 1",
        ),
        (
            lambda: optimizer_selector(["sgdm", "sgd"], [0.1, 0.2]),
            "`bases` must be among sgdm, adam; got sgd",
        ),
    ],
)
def test_bad_policies(make, message):
    with pytest.raises(ValueError, match=message):
        make()


RENAMED = {
    "chooser": (optimizer_selector(action_interval=7, hidden_size=3), "interval"),
    "tensor_controller": (
        per_tensor_controller("adam", ["b1"], action_interval=7, hidden_size=3),
        "knobs",
    ),
    "scheduler": (scheduler(hyperparameters=["max_norm"], action_interval=7), "knobs"),
}
"""Designs as they are, by the names they had, and an argument that had another name."""


@pytest.mark.parametrize("name", RENAMED)
def test_release_files_of_old_names_load(name, tmp_path):
    """Written with the old name of the design and of its arguments, as older versions did."""
    lopt, argument = RENAMED[name]
    old_names = {"action_interval": "interval", "hyperparameters": "knobs"}
    config = {old_names.get(key, key): value for key, value in lopt.config.items()}
    assert argument in config and "interval" in config
    theta = noisy_theta(lopt)
    path = tmp_path / "old.safetensors"
    release.save(path, dataclasses.replace(lopt, name=name, config=config), theta)
    loaded, found = l2o.load(path)
    assert (loaded.name, loaded.config) == (lopt.name, lopt.config)
    jax.tree.map(np.testing.assert_array_equal, found, theta)


@pytest.mark.parametrize(
    ("old", "new"),
    [("chooser", "optimizer_selector"), ("tensor_controller", "per_tensor_controller")],
)
def test_an_old_name_is_answered_with_the_new_one(old, new):
    with pytest.raises(ValueError, match=f"`optimizer` must be a known name; got {old}. Try {new}"):
        registry.learned_optimizer(old)
