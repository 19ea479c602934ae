"""What pairs do: draws, masks, restarts, shaping, and schedules of the noise."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import HORIZON, THETA, WINDOW, decay_losses, decay_problem
from estimator_table import EVOLUTION, PERSISTENT, make, once
from scipy.stats import rankdata

from l2o.estimators.pes import pes
from l2o.estimators.population import (
    MEMBERS,
    centered_rank_difference,
    loss_difference,
)
from l2o.estimators.truncated_es import truncated_es
from l2o.problem import InnerState, Problem, Window

pytestmark = pytest.mark.usefixtures("strict_ranks")

STD = 0.1


def noise_of(key, pair):
    k_perturbation, _ = jax.random.split(jax.random.fold_in(key, pair))
    return STD * jax.random.normal(k_perturbation, THETA.shape)


def gradients_of_pairs(key, num_pairs, num_steps):
    """Each pair's gradient in its first estimate, by hand: shape (pairs, 2)."""
    noise = jnp.stack([noise_of(key, pair) for pair in range(num_pairs)])
    cost = lambda theta: jnp.mean(decay_losses(theta, jnp.zeros(2), num_steps)[1])
    delta = jax.vmap(lambda e: cost(THETA + e) - cost(THETA - e))(noise)
    return np.asarray(delta[:, None] * noise / (2 * STD**2))


def num_steps_of(name):
    return HORIZON if name == "full_es" else WINDOW


def strategies(*quick):
    """All of them; those that are not quick are in the slow suite."""
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in EVOLUTION]


@pytest.mark.parametrize("name", strategies("full_es", "nres", "truncated_es"))
def test_a_pair_depends_on_its_global_index_only(name, key):
    """Growing the population leaves the pairs before as they were: their sum only grows."""
    for num_pairs in (2, 4):
        gradient, _, _ = once(make(name, decay_problem(), num_pairs=num_pairs), key)
        expected = np.mean(gradients_of_pairs(key, num_pairs, num_steps_of(name)), axis=0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3)


QUICK_SIDES = {"full_es": (1.0,), "pes": (1.0, -1.0), "nres": (-1.0,), "truncated_es": (1.0,)}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        pytest.param(
            *(name, side), marks=() if side in QUICK_SIDES.get(name, ()) else pytest.mark.slow
        )
        for name in EVOLUTION
        for side in (1.0, -1.0)
    ],
)
def test_a_nan_member_masks_its_pair_only(name, side, key):
    """The losses of the one member that is furthest to one side turn NaN."""
    num_pairs = 4
    reach = np.array([abs(float(noise_of(key, pair)[0])) for pair in range(num_pairs)])
    bad = int(np.argmax(reach))
    limit = float(np.mean(np.sort(reach)[-2:]))

    def poisoned(losses, theta, state):
        return jnp.where(side * (theta[0] - THETA[0]) > limit, jnp.nan, losses)

    estimator = make(name, decay_problem(loss=poisoned), num_pairs=num_pairs)
    gradient, after, metrics = once(estimator, key)

    others = [pair for pair in range(num_pairs) if pair != bad]
    expected = np.mean(gradients_of_pairs(key, num_pairs, num_steps_of(name))[others], axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)
    assert metrics["valid"] == 0.75
    np.testing.assert_allclose(metrics["finite"], 1 - 1 / 8)
    assert np.isfinite(metrics["meta_loss"])
    if name == "full_es":
        return
    inner = after.members.inner if name in PERSISTENT else after.members
    assert inner.horizon[bad] == 0 and np.all(np.delete(inner.horizon, bad) > 0)
    if name in PERSISTENT:
        np.testing.assert_array_equal(after.members.perturbation_sum[bad], np.zeros(2))
        assert name == "pes" or bool(after.members.needs_resample[bad])
        assert np.any(np.asarray(after.members.perturbation_sum)[others] != 0)
    # The next window is the first of another run, from its start and perturbed by nothing before.
    next_key = jax.random.fold_in(key, num_pairs)
    _, again, metrics = once(
        make(name, decay_problem(), num_pairs=num_pairs), next_key, state=after
    )
    assert metrics["valid"] == 1.0
    inner = again.members.inner if name in PERSISTENT else again.members
    assert inner.step[bad] == WINDOW and inner.horizon[bad] in range(WINDOW, HORIZON + 1, WINDOW)
    noise = noise_of(next_key, bad)
    reached = decay_losses(THETA + noise, jnp.zeros(2), WINDOW)[0]
    plus = inner.params[bad, 0] if name in PERSISTENT else inner.params[bad]
    np.testing.assert_allclose(plus, reached, rtol=1e-5)
    if name in PERSISTENT and inner.horizon[bad] > WINDOW:
        found = again.members.perturbation_sum[bad]
        np.testing.assert_allclose(found, noise / STD**2, rtol=1e-5)


@pytest.mark.parametrize("name", strategies("pes"))
def test_a_pair_whose_gradient_overflows_is_left_out(name, key):
    """Its losses are finite, and their difference is not."""
    reach = np.array([abs(float(noise_of(key, pair)[0])) for pair in range(4)])
    limit = float(np.mean(np.sort(reach)[-2:]))
    is_far = lambda theta: jnp.abs(theta[0] - THETA[0]) > limit
    huge = lambda losses, theta, state: jnp.where(
        is_far(theta), 3e38 * jnp.sign(theta[0] - THETA[0]), losses
    )
    estimator = make(name, decay_problem(loss=huge), num_pairs=4)
    gradient, _, metrics = once(estimator, key)
    assert metrics["valid"] == 0.75 and metrics["finite"] == 1.0
    assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient) < 1e6)


@pytest.mark.parametrize("name", strategies("full_es", "pes", "nres"))
def test_no_valid_pair_gives_a_zero_gradient_and_says_so(name, key):
    always = lambda losses, theta, state: losses * jnp.nan
    shaping = "none" if name == "full_es" else "standardize" if name == "pes" else "centered_rank"
    estimator = make(name, decay_problem(loss=always), num_pairs=2, shaping=shaping)
    gradient, _, metrics = once(estimator, key)
    np.testing.assert_array_equal(gradient, np.zeros(2))
    assert np.isnan(metrics["meta_loss"])
    assert metrics["valid"] == 0 and metrics["finite"] == 0


@pytest.mark.parametrize("name", PERSISTENT)
def test_members_of_a_pair_share_their_draws_and_pairs_do_not(name, key):
    inner = once(make(name, decay_problem(), num_pairs=4), key)[1].members.inner
    draws = np.asarray(inner.opt_state)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert len(set(draws[:, 0].tolist())) == 4
    assert np.any(np.asarray(inner.params)[:, 0] != np.asarray(inner.params)[:, 1])


def watched(problem: Problem) -> Problem:
    """The problem, with the theta that a member had in its last window as `best`."""
    watch = lambda start: lambda key, theta: start(key, theta)._replace(best=jnp.zeros(2))

    def unroll(key, theta, state, data):
        after, window = problem.unroll(key, theta, state._replace(best=()), data)
        return after._replace(best=theta), window

    return replace(problem, init=watch(problem.init), start=watch(problem.start), unroll=unroll)


def perturbations(inner: InnerState) -> np.ndarray:
    """What the pairs of a watched problem were perturbed by, shape (pairs, 2)."""
    return np.asarray(inner.best[:, 0] - inner.best[:, 1]) / 2


def test_when_perturbations_are_drawn(key):
    """PES every window, NRES when a run has ended, and not before."""
    seen = {}
    for name in ("pes", "nres"):
        estimator = make(name, watched(decay_problem()), num_pairs=8)
        run = jax.jit(estimator.estimate)
        state, seen[name] = jax.jit(estimator.init)(key, THETA), []
        for window in range(5):
            before = perturbations(state.members.inner)
            _, state, _ = run(jax.random.fold_in(key, window), THETA, state, ())
            changed = np.any(perturbations(state.members.inner) != before, axis=-1)
            inner = state.members.inner
            seen[name].append((changed, np.asarray(inner.step >= inner.horizon)))
    assert all(np.all(changed) for changed, _ in seen["pes"])
    for (_, ended), (changed, _) in zip(seen["nres"][:-1], seen["nres"][1:], strict=True):
        np.testing.assert_array_equal(changed, ended)
    assert np.all(seen["nres"][0][0])


def test_es_single_is_in_lockstep_and_nres_is_not(key):
    single, nres = (
        make(n, decay_problem(), num_pairs=16).init(key, THETA) for n in ("es_single", "nres")
    )
    assert set(np.asarray(single.members.inner.horizon).tolist()) == {HORIZON}
    assert len(set(np.asarray(nres.members.inner.horizon).tolist())) > 1


def test_truncated_es_goes_on_from_the_plus_member(key):
    estimator = truncated_es(decay_problem(), num_pairs=1, std=STD)
    state = jax.jit(estimator.init)(key, THETA)
    members = state.members._replace(horizon=jnp.array([HORIZON]))
    _, after, _ = once(estimator, key, state=state._replace(members=members))
    expected, _ = decay_losses(THETA + noise_of(key, 0), jnp.zeros(2), WINDOW)
    np.testing.assert_allclose(after.members.params[0], expected, rtol=1e-5)


def test_meta_loss_is_the_mean_over_steps_and_members(key):
    _, _, metrics = once(pes(decay_problem(), num_pairs=2, std=1e-6), key)
    expected = jnp.mean(decay_losses(THETA, jnp.zeros(2), WINDOW)[1])
    np.testing.assert_allclose(metrics["meta_loss"], expected, rtol=1e-4)


def losses_of_pairs(key, num_pairs, num_steps):
    """Mean losses of a first estimate, shape (pairs, 2), and its perturbations."""
    noise = np.stack([noise_of(key, pair) for pair in range(num_pairs)])
    cost = lambda theta: jnp.mean(decay_losses(theta, jnp.zeros(2), num_steps)[1])
    losses = jax.vmap(jax.vmap(cost))(THETA[None, None] + jnp.stack([noise, -noise], axis=1))
    return np.asarray(losses), noise


@pytest.mark.parametrize(
    ("name", "shaping"),
    [("pes", "sign"), ("nres", "centered_rank"), ("pes", "standardize"), ("full_es", "sign")],
)
def test_shaping_by_hand(name, shaping, key):
    num_pairs = 5
    losses, noise = losses_of_pairs(key, num_pairs, num_steps_of(name))
    delta = losses[:, 0] - losses[:, 1]
    ranks = rankdata(losses).reshape(num_pairs, 2)
    weight = {
        "sign": np.sign(delta),
        "centered_rank": (ranks[:, 0] - ranks[:, 1]) / (2 * num_pairs - 1),
        "standardize": delta * STD / np.std(losses),
    }[shaping]
    expected = np.mean(weight[:, None] * noise / (2 * STD**2), axis=0)
    gradient = once(make(name, decay_problem(), num_pairs=num_pairs, shaping=shaping), key)[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)


@pytest.mark.parametrize("shaping", ["centered_rank", "standardize"])
def test_a_pair_that_is_left_out_does_not_shape_the_others(shaping):
    losses = np.array([[1.0, 4.0], [np.nan, 2.0], [3.0, 2.5]], np.float32)
    valid = np.isfinite(losses).all(axis=1)
    on = jnp.ones((3, 2, 1), bool)
    window = Window(loss=jnp.asarray(losses)[..., None], done=on, mask=on, finite=on, diverged=~on)
    shaped = jax.vmap(lambda w: loss_difference(w, STD, shaping, None), axis_name=MEMBERS)
    found = np.asarray(shaped(window))[valid, 0]
    kept = losses[valid]
    if shaping == "centered_rank":
        ranks = rankdata(kept).reshape(2, 2)
        expected = (ranks[:, 0] - ranks[:, 1]) / 5
    else:
        expected = (kept[:, 0] - kept[:, 1]) * STD / np.std(kept)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_equal_losses_share_their_rank():
    losses = jnp.array([[1.0, 1.0], [3.0, 2.0]])
    found = [centered_rank_difference(pair, losses) for pair in losses]
    np.testing.assert_allclose(found, [0.0, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("name", ["pes", "nres"])
def test_a_schedule_of_the_noise(name, key):
    """Exact credit for a perturbation that was drawn with another σ: unbiased on a linear loss."""
    linear = lambda losses, theta, state: jnp.full_like(losses, theta @ jnp.array([1.0, -2.0]))
    schedule = optax.exponential_decay(1.0, 1, 0.5)
    estimator = make(name, watched(decay_problem(loss=linear)), num_pairs=2000, std=schedule)
    run = jax.jit(estimator.estimate)
    state = jax.jit(estimator.init)(key, THETA)
    for step in range(6):
        before = state
        gradient, state, _ = run(jax.random.fold_in(key, step), THETA, before, ())
        # ε εᵀ c / σ² has a variance of |c|² + c_i² up to 9; what PES drew before adds to it.
        np.testing.assert_allclose(gradient, [1.0, -2.0], atol=4 * np.sqrt(9 / 2000) * 2)
        drawn = ... if name == "pes" else np.asarray(before.members.needs_resample)
        spread = float(np.std(perturbations(state.members.inner)[drawn]))
        np.testing.assert_allclose(spread, 0.5**step, rtol=0.15)
    assert int(state.step) == 6


@pytest.mark.parametrize("name", [*PERSISTENT, "truncated_es", "truncated_grad"])
def test_a_diverged_run_is_replaced_after_the_window_in_which_it_was_dead(name, key):
    """Its window counts at the cap; runs that are well go on as if nothing had happened.

    Runs of the longest horizon diverge in their first window: their loss is the cap and they have
    no finite training loss. In the others one step has none, which is no reason to end them.
    """
    cap = 7.0
    healthy = decay_problem()

    def unroll(key, theta, state, data):
        after, window = healthy.unroll(key, theta, state, data)
        is_dead = after.horizon == HORIZON
        loss = jnp.where(is_dead, cap, window.loss)
        finite = window.finite & ~is_dead & (jnp.arange(WINDOW) != 2)
        return after, window._replace(loss=loss, finite=finite)

    # Of another length: ES-Single begins with whole runs, which are the ones that break down.
    start = lambda key, theta: healthy.init(key, theta)
    num_members = 16
    problem = replace(healthy, unroll=unroll, start=start)
    estimator = make(name, problem, num_pairs=num_members)
    unharmed = make(name, replace(healthy, start=start), num_pairs=num_members)
    before = jax.jit(estimator.init)(key, THETA)
    _, after, metrics = once(estimator, key, state=before)
    _, expected, plain = once(unharmed, key, state=before)

    inner = lambda state: state.members.inner if name in PERSISTENT else state.members
    is_dead = np.asarray(inner(before).horizon == HORIZON)
    assert 0 < np.sum(is_dead) < num_members
    assert metrics["valid"] == 1.0
    np.testing.assert_allclose(metrics["finite"], np.mean(~is_dead) * 4 / 5, rtol=1e-6)
    assert metrics["meta_loss"] > plain["meta_loss"]  # it still costs the cap

    np.testing.assert_array_equal(
        inner(after).horizon, np.where(is_dead, 0, inner(expected).horizon)
    )
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        if np.ndim(x):
            np.testing.assert_array_equal(x[~is_dead], y[~is_dead])
    if name in PERSISTENT:
        np.testing.assert_array_equal(after.members.perturbation_sum[is_dead], 0.0)
    if name in ("nres", "es_single"):
        assert np.all(np.asarray(after.members.needs_resample)[is_dead])

    _, again, _ = once(unharmed, jax.random.fold_in(key, 1), state=after)
    np.testing.assert_array_equal(inner(again).step[is_dead], WINDOW)
    assert np.all(np.isin(inner(again).horizon[is_dead], range(WINDOW, HORIZON + 1, WINDOW)))


def test_a_pair_of_which_one_member_is_alive_goes_on(key):
    """Its loss difference is what tells theta that it diverges."""

    def unroll(key, theta, state, data):
        after, window = healthy.unroll(key, theta, state, data)
        return after, window._replace(finite=window.finite & (theta[0] > THETA[0]))

    healthy = decay_problem()
    estimator = make("pes", replace(healthy, unroll=unroll), num_pairs=8)
    _, after, metrics = once(estimator, key)
    _, expected, _ = once(make("pes", healthy, num_pairs=8), key)
    assert metrics["finite"] == 0.5
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
