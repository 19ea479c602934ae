"""The guard does nothing until training diverges, and then goes on as the fallback would."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from design_cases import NAMES, TABLE, perturbed_theta

import l2o
from l2o.inner_step import inner_step
from l2o.loops.guard import GOING_BACK, LEADING, RELIEVED, RESTORING, guarded
from l2o.tasks.digits import digits_mlp
from l2o.tasks.quadratic import rotated_quadratic

STEPS = 300
MLP = digits_mlp().evaluation[0]


def train(tx, task=MLP, num_steps=STEPS, seed=0):
    """Parameters, state and losses of a run in one program."""
    tx = optax.with_extra_args_support(tx)
    k_sample, k_init, k_run = jax.random.split(jax.random.key(seed), 3)
    instance = task.sample(k_sample)

    def step(carry, i):
        params, state, loss, _ = inner_step(
            task, tx, jax.random.fold_in(k_run, i), *carry, instance, task.data
        )
        return (params, state), loss

    params = task.init(k_init, instance)
    start = (params, tx.init(params))
    carry, losses = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(num_steps)))(start)
    return *carry, np.asarray(losses)


def walk(tx, losses, params=None, grad=0.1):
    """States and parameters after updates at given losses."""
    params = {"x": jnp.ones(2)} if params is None else params
    grads = jax.tree.map(lambda p: jnp.full_like(p, grad), params)
    state, found = tx.init(params), []
    update = jax.jit(lambda state, params, loss: tx.update(grads, state, params, value=loss))
    for loss in losses:
        updates, state = update(state, params, jnp.float32(loss))
        params = optax.apply_updates(params, updates)
        found.append((state, params))
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_changes_until_it_acts(name, seed):
    """Bit for bit, where the update is a program of its own."""
    task = rotated_quadratic(4)
    tx = TABLE[name].transform(perturbed_theta(name, seed), horizon=30)
    instance = task.sample(jax.random.key(seed))
    start = task.init(jax.random.key(seed + 1), instance)
    grad = jax.jit(jax.grad(lambda p: task.loss(p, jnp.zeros(4), instance)))

    def run(tx):
        params, state, update, found = start, tx.init(start), jax.jit(tx.update), []
        for t in range(20):  # at losses that fall, whatever an untrained design does
            loss = jnp.float32(2 / (1 + t))
            updates, state = update(grad(params), state, params, value=loss)
            params = optax.apply_updates(params, updates)
            found.append((updates, params))
        return found, state

    (found, state), (expected, plain) = run(guarded(tx)), run(tx)
    assert int(state.switches) == 0
    jax.tree.map(np.testing.assert_array_equal, (found, state.leader), (expected, plain))


DIVERGENT = {
    "learned rate times 100": optax.chain(l2o.optimizer("digits", STEPS), optax.scale(100.0)),
    "a rate of 30": optax.sgd(30.0),
    "updates that are not finite": optax.chain(
        optax.adam(0.01), optax.scale_by_schedule(lambda t: jnp.where(t < 40, 1.0, jnp.inf))
    ),
    "up again, late": optax.chain(
        optax.adam(0.001), optax.scale_by_schedule(lambda t: jnp.where(t < 100, 1.0, -30.0))
    ),
}


@pytest.mark.parametrize("name", DIVERGENT)
def test_a_run_that_diverges_ends_as_that_of_the_fallback(name):
    final = lambda losses: float(np.mean(losses[-10:]))
    _, _, alone = train(DIVERGENT[name])
    _, state, found = train(guarded(DIVERGENT[name]))
    _, _, fallback = train(optax.adam(1e-3))
    assert int(state.switches) == 1 and int(state.mode) == RELIEVED
    assert not final(alone) < 2 * final(fallback)
    assert final(found) < 1.05 * final(fallback)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_goes_back_to_where_the_loss_was_lowest(dtype):
    away = optax.sgd(-1e6)
    start = {"x": jnp.asarray([0.1, 3.0], dtype)}
    path = walk(guarded(away, snapshot_every=1), [2.0, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 2.0], start)
    modes = [int(state.mode) for state, _ in path]
    assert modes == [LEADING] * 2 + [GOING_BACK] * RESTORING + [RELIEVED] * 2
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(path[1 + RESTORING][1]["x"], start["x"], rtol=ulp)
    assert int(path[-1][0].last_switch) == 2


def test_one_bad_batch_is_no_end():
    for bad in (100.0, jnp.nan, jnp.inf):
        path = walk(guarded(optax.sgd(0.01)), [2.0, 1.9, bad, 1.8, 1.7, 1.6])
        assert int(path[-1][0].switches) == 0
    assert int(walk(guarded(optax.sgd(0.01)), [2.0, 1.9, jnp.nan, jnp.nan])[-1][0].switches) == 1


def test_what_was_won_may_not_be_lost_for_long():
    fall, lost = list(np.linspace(2.0, 0.1, 40)), [1.8] * 60
    path = walk(guarded(optax.sgd(0.01)), fall + lost)
    assert 60 <= int(path[-1][0].last_switch) <= 95
    noisy = [0.5 + 0.4 * (-1) ** i for i in range(60)]
    assert int(walk(guarded(optax.sgd(0.01)), fall + noisy)[-1][0].switches) == 0


def test_it_may_lead_again_and_waits_longer_each_time():
    bad = [2.0, 1e6, 1e6, 1e6, 1e6, 1e6]
    losses = [*bad, *[1.0] * 5, 1e6, 1e6, 1e6, 1e6, 1e6, *[1.0] * 9]
    path = walk(guarded(optax.adam(0.1), optax.adam(0.2), retry_after=3), losses)
    modes = "".join("lbr"[int(state.mode)] for state, _ in path)
    assert modes == "llbbbbrrrlllbbbbrrrrrrlll"[: len(losses)]
    state = path[-1][0]
    assert int(state.switches) == 2
    assert [int(state.last_switch), int(state.last_return)] == [modes.rindex("lb") + 1, 22]
    counts = lambda state: [int(s[0].count) for s in (state.leader, state.fallback)]
    assert counts(path[21][0])[1] == 6  # begun anew at the second switch
    assert counts(path[-1][0])[0] == len(losses) - 22


def test_who_leads_again_has_not_lost_what_another_lost():
    fall = list(np.linspace(2.0, 0.1, 40))
    path = walk(guarded(optax.sgd(0.1), retry_after=40), fall + [1.8] * 130)
    modes = "".join("lbr"[int(state.mode)] for state, _ in path)
    (again, *_) = re.findall("r(l+)", modes)
    assert len(again) >= 20, modes


@pytest.mark.parametrize(
    ("params", "grad"),
    [
        (jnp.ones(2), jnp.ones(2, jnp.bfloat16)),
        (jnp.ones(2, jnp.bfloat16), jnp.ones(2)),
        (jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16)),
    ],
    ids=["gradients", "parameters", "both"],
)
def test_dtypes_may_differ(params, grad):
    tx = guarded(l2o.optimizer("digits", 10))
    state = tx.init(params)
    for loss in (2.0, 1e6, 1e6, 1e6, 1e6, 1e6, 1.0):
        updates, state = jax.jit(tx.update)(grad, state, params, value=loss)
        assert updates.dtype == grad.dtype
    assert int(state.mode) == RELIEVED


def test_no_parameter_becomes_infinite_in_its_own_dtype():
    params = jnp.array([6e4, 1.0], jnp.float16)
    grads = jnp.array([-3e4, 0.0])
    tx = guarded(optax.sgd(1.0), optax.sgd(1e-3))
    updates, _ = tx.update(grads, tx.init(params), params, value=1.0)
    assert jnp.all(jnp.isfinite(optax.apply_updates(params, updates)))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e20])
@pytest.mark.parametrize("leader", [0.0, 10.0], ids=["leading", "relieved"])
def test_neither_optimizer_sees_a_gradient_that_is_no_number(leader, bad):
    """Adam's moments would stay what such a gradient makes of them."""
    tx = guarded(optax.adam(leader), optax.adam(1e-2))
    params = {"w": jnp.array([1.0, -2.0])}
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(60):
        loss = jnp.sum(jnp.square(params["w"]))
        grads = jax.tree.map(lambda w: 2.0 * w, params)
        if i == 40:
            grads = {"w": grads["w"].at[0].set(bad)}
        updates, state = update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    assert (state.switches > 0) == (leader > 0)
    moments = state.fallback[0] if leader else state.leader[0]
    assert np.all(np.isfinite(moments.mu["w"])) and np.all(np.abs(moments.nu["w"]) < 1e3)
    assert leader == 0.0 or np.all(np.asarray(updates["w"]) != 0.0)


def test_it_takes_the_trees_and_losses_that_designs_take():
    params = {"w": jnp.ones(2), "f": jnp.tanh, "frozen": jnp.ones(3)}
    grads = {"w": jnp.ones(2), "f": None, "frozen": None}
    tx = guarded(l2o.optimizer("digits", 10))
    updates, _ = tx.update(grads, tx.init(params), params, value=jnp.ones(1))
    assert updates["frozen"] is None and updates["f"] is None


def test_python_numbers_are_parameters():
    tx = guarded(optax.sgd(0.1))
    params = {"w": 2.0, "b": 1}
    grads = {"w": jnp.float32(1.0), "b": None}
    updates, state = tx.update(grads, tx.init(params), params, value=1.0)
    assert updates["w"] == pytest.approx(-0.1) and updates["b"] is None
    tx.update(grads, state, params, value=1.0)


def test_losses_that_begin_at_zero_or_are_never_finite():
    for losses in ([0.0, 1.0, *[1e6] * 8], [jnp.nan] * 30):
        assert int(walk(guarded(optax.sgd(0.01)), losses)[-1][0].switches) == 1


def test_snapshots_are_as_far_apart_as_was_said():
    falling = np.linspace(2.0, 1.0, 12)
    path = walk(guarded(optax.sgd(0.1), snapshot_every=5), falling)
    kept = [float(state.snapshot["x"][0]) for state, _ in path]
    assert len(set(kept[0:5])) == len(set(kept[5:10])) == 1 and len(set(kept)) == 3


SEEDS, UPDATES = 300, 400
TIME = np.arange(UPDATES)
FALL = 0.3 + 0.7 * np.exp(-TIME / 100)


def correlated(rng) -> np.ndarray:
    """Noise that lasts for some 50 updates, as of rows that come by document."""
    noise, decay = np.zeros((SEEDS, UPDATES)), np.exp(-1 / 50)
    for i in range(1, UPDATES):
        fresh = np.sqrt(1 - decay**2) * rng.normal(size=SEEDS)
        noise[:, i] = decay * noise[:, i - 1] + fresh
    return noise


HEALTHY = {
    "flat": lambda rng: 1.0 + 0.1 * rng.normal(size=(SEEDS, UPDATES)),
    "flat, hardly any noise": lambda rng: 1.0 + 0.02 * rng.normal(size=(SEEDS, UPDATES)),
    "slow": lambda rng: (
        (0.3 + 0.7 * np.exp(-TIME / 1000)) * (1 + 0.1 * rng.normal(size=(SEEDS, UPDATES)))
    ),
    "fast": lambda rng: FALL * (1 + 0.1 * rng.normal(size=(SEEDS, UPDATES))),
    "warm-up": lambda rng: (
        np.where(TIME < 100, 1.0, 0.3 + 0.7 * np.exp(-(TIME - 100) / 100))
        * (1 + 0.1 * rng.normal(size=(SEEDS, UPDATES)))
    ),
    "noise that lasts": lambda rng: FALL * (1 + 0.1 * correlated(rng)),
    "a warm restart": lambda rng: (
        (FALL + 0.1 * (TIME > 200) * np.exp(-(TIME - 200) / 50))
        * (1 + 0.03 * rng.normal(size=(SEEDS, UPDATES)))
    ),
}
DIVERGING = {
    "half of it is lost": lambda rng: (
        (FALL + 0.5 * np.clip((TIME - 200) / 100, 0, 1))
        * (1 + 0.05 * rng.normal(size=(SEEDS, UPDATES)))
    ),
    "noise comes with it": lambda rng: (
        FALL
        + (TIME > 200) * (0.7 + 0.5 * rng.normal(size=(SEEDS, UPDATES)))
        + 0.02 * rng.normal(size=(SEEDS, UPDATES))
    ),
}


def share_of_switches(losses: np.ndarray) -> float:
    tx = guarded(optax.sgd(0.0), optax.sgd(0.0))
    params = jnp.zeros(1)

    def run(losses):
        def update(state, loss):
            return tx.update(params, state, params, value=loss)[1], None

        return jax.lax.scan(update, tx.init(params), losses)[0].switches

    return float(np.mean(np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(losses))) > 0))


@pytest.mark.parametrize("curve", HEALTHY)
def test_healthy_runs_are_left_alone(curve):
    assert share_of_switches(HEALTHY[curve](np.random.default_rng(0))) <= 0.01


def test_a_first_loss_that_is_low_by_chance_is_rare():
    """Twice the first loss is divergence, and the first loss is one batch's."""
    losses = 1.0 + 0.2 * np.random.default_rng(0).normal(size=(SEEDS, UPDATES))
    assert share_of_switches(losses) <= 0.05


@pytest.mark.parametrize("curve", DIVERGING)
def test_runs_that_lose_what_they_won_are_not(curve):
    assert share_of_switches(DIVERGING[curve](np.random.default_rng(0))) >= 0.99


def test_a_population_with_donation():
    """Each member has its own guard."""
    tx = guarded(optax.inject_hyperparams(optax.sgd)(1.0))

    def run(rate):
        params = jnp.ones(3)
        state = tx.init(params)
        state.leader.hyperparams["learning_rate"] = rate

        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
            updates, state = tx.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), loss

        (params, state), _ = jax.lax.scan(step, (params, state), length=50)
        return params, state.switches

    params, switches = jax.jit(jax.vmap(run))(jnp.array([0.1, 0.3, 10.0]))
    assert switches.tolist() == [0, 0, 1]
    assert jnp.all(jnp.isfinite(params)) and jnp.max(jnp.abs(params[2])) < 1.0
    start = jnp.ones(3)
    step = jax.jit(lambda p, s: tx.update(p, s, p, value=1.0), donate_argnums=(0, 1))
    step(start, tx.init(start))


def test_its_state_is_placed_like_the_parameters():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    tx = guarded(l2o.optimizer("digits", 10))
    same_shape = lambda x, p: np.testing.assert_equal(jnp.shape(x), p.shape)
    optax.tree.map_params(tx, same_shape, tx.init(params), params)


@pytest.mark.parametrize("name", ["snapshot_every", "retry_after"])
def test_mistakes_are_told_in_a_line(name):
    with pytest.raises(
        ValueError, match=rf"`{name}` must be a whole number from 1 on; got 0. Try 10."
    ):
        guarded(optax.sgd(0.1), **{name: 0})


@pytest.mark.parametrize("missing", ["params", "value"])
def test_what_it_needs_is_named(missing):
    tx, x = guarded(optax.sgd(0.1)), jnp.ones(2)
    arguments = {"params": x, "value": 1.0}
    arguments[missing] = None
    with pytest.raises(ValueError, match=f"`{missing}` is needed by guarded"):
        tx.update(x, tx.init(x), arguments["params"], value=arguments["value"])


def test_several_gradients_for_one_update_keep_the_loss():
    """`optax.MultiSteps` takes `value`, though its type does not say so."""
    tx = guarded(optax.MultiSteps(l2o.optimizer("digits", horizon=10), 2), optax.adam(1e-2))
    params = {"x": jnp.ones(2)}
    state = tx.init(params)
    moved = []
    for _ in range(4):
        updates, state = tx.update({"x": jnp.ones(2)}, state, params, value=1.0)
        moved.append(bool(jnp.any(updates["x"] != 0)))
    assert moved == [False, True, False, True]
