"""Rivals by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from parabolas import KEY, noisy

from l2o.augmentation.low_precision import low_precision
from l2o.evaluation.baseline import Range, half_decades, scaled, schedule
from l2o.evaluation.baselines import BASELINES, DEFAULT_BASELINES, check_baselines
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Trainer, judged_params
from l2o.inner_step import inner_step
from l2o.tasks.quadratic import rotated_quadratic

CONFIG = {"learning_rate": 2.0, "horizon_fraction": 1.0, "warmup": 0.25}


def at(baseline, learning_rate, **changes):
    return {**BASELINES[baseline].defaults, "learning_rate": learning_rate, **changes}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains_at_traced_hyperparameters(name):
    baseline, horizon = BASELINES[name], 60

    def loss(params):
        return jnp.sum(jnp.square(params["kernel"] - 1.0)) + jnp.sum(params["bias"] ** 2)

    def final_loss(learning_rate):
        tx = baseline.make({**baseline.defaults, "learning_rate": learning_rate}, horizon)
        tx = optax.with_extra_args_support(tx)
        params = {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)}

        def step(i, carry):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return optax.apply_updates(params, updates), state

        carry = jax.lax.fori_loop(0, horizon, step, (params, tx.init(params)))
        later = jax.lax.fori_loop(0, 5, step, carry)
        return loss(judged_params(*carry)), loss(judged_params(*later))

    rates = jnp.array(baseline.learning_rates)
    losses, later = jax.jit(jax.vmap(final_loss))(rates)
    assert jnp.min(losses) < 0.9 * 8.0  # where it begins
    # Mechanic also changes what was done before; D-Adaptation's momentum is one of steps.
    if name not in ("mechanic", "dadapt_adamw"):
        assert bool(jnp.all(later == losses)) == baseline.is_scheduled


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains_parameters_of_bfloat16(name):
    task, baseline, horizon = low_precision(rotated_quadratic(4)), BASELINES[name], 20
    trainer = Trainer(task, lambda config: baseline.make(config, horizon), horizon=horizon)
    (curves,) = trainer.train(
        {n: np.array([v]) for n, v in at(name, baseline.learning_rates[0]).items()},
        draw_starts(KEY, task, 2),
    )
    assert np.all(np.isfinite(curves.probe_loss))


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_searched_for_is_said(name):
    baseline = BASELINES[name]
    assert baseline.is_tuned == (len(baseline.learning_rates) == 8)
    assert ("untuned" in baseline.description) == (not baseline.is_tuned)
    assert baseline.is_tuned or not baseline.space


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_schedule_rises_then_falls_to_zero(decay):
    rate = schedule(CONFIG, 80, decay)
    np.testing.assert_allclose([rate(i) for i in (0, 9, 19)], [0.1, 1.0, 2.0], rtol=1e-6)
    assert rate(50) == pytest.approx(1.0)  # the middle of the fall, from 20 to 80
    assert rate(80) == rate(200) == 0.0
    shorter = schedule({**CONFIG, "horizon_fraction": 0.5}, 80, decay)
    assert shorter(25) == pytest.approx(1.0) and shorter(40) == 0.0


def test_the_cosine_is_that_of_optax():
    rate = schedule({**CONFIG, "warmup": 0.0}, 80, "cosine")
    theirs = optax.cosine_decay_schedule(2.0, 80)
    np.testing.assert_allclose(
        jax.vmap(rate)(jnp.arange(81)), jax.vmap(theirs)(jnp.arange(81)), atol=1e-6
    )


def updates_of(name, config, horizon, grads):
    """Updates of a scalar parameter that begins at 2, and the parameter before each."""
    tx, params = BASELINES[name].make(config, horizon), jnp.float32(2.0)
    state, update = tx.init(params), jax.jit(tx.update)
    updates, values = [], []
    for g in grads:
        values.append(float(params))
        step, state = update(jnp.float32(g), state, params)
        params = params + step
        updates.append(float(step))
    return np.array(updates), np.array(values)


def test_optlists_first_configuration_by_hand():
    grads = np.random.default_rng(0).normal(size=101) * 1e-4  # so small that epsilon matters
    (rate,) = BASELINES["optlist_one"].learning_rates
    found, values = updates_of("optlist_one", at("optlist_one", rate), 100, grads)
    m = v = 0.0
    for i, (g, value) in enumerate(zip(grads, values, strict=True)):
        m, v = 0.936 * m + 0.064 * g, 0.99895 * v + 0.00105 * g * g
        corrected = 1.195e-3 * np.sqrt(1 - 0.99895 ** (i + 1)) / (1 - 0.936 ** (i + 1))
        fall = 0.5 + 0.5 * np.cos(np.pi * np.clip((i / 100 - 0.7473) / 0.2527, 0, 1))
        step = -corrected * fall * (m / (np.sqrt(v) + 5.876e-6) + 1.014e-2 * value)
        assert found[i] == pytest.approx(step, rel=2e-3, abs=1e-9)
    assert found[100] == 0.0
    half = at("optlist_one", rate) | {"horizon_fraction": 0.5}
    assert updates_of("optlist_one", half, 100, grads[:51])[0][50] == 0.0


def test_algoperfs_configuration_by_hand():
    grads = np.random.default_rng(0).normal(size=51)
    (rate,) = BASELINES["nadamw_one"].learning_rates
    found, values = updates_of("nadamw_one", at("nadamw_one", rate), 50, grads)
    b1, b2 = 1 - 0.06733926164, 0.9955159689799007
    m = v = 0.0
    for i, (g, value) in enumerate(zip(grads, values, strict=True)):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        # Nesterov's momentum with the corrections of Dozat (2016).
        ahead = b1 * m / (1 - b1 ** (i + 2)) + (1 - b1) * g / (1 - b1 ** (i + 1))
        direction = ahead / (np.sqrt(v / (1 - b2 ** (i + 1))) + 1e-8) + 0.08121616522670176 * value
        fall = 0.5 + 0.5 * np.cos(np.pi * (i - 1) / 49) if i > 1 else 1.0  # a warm-up of one step
        assert found[i] == pytest.approx(-1.7486387539278373e-3 * fall * direction, rel=2e-3)
    assert found[50] == 0.0


def test_muon_takes_a_kernel_as_a_matrix_and_steps_are_of_adams_size():
    kernel = jax.random.normal(KEY, (3, 3, 4, 8))
    tx = BASELINES["muon"].make(at("muon", 1.0), 1e9)

    def update(params):
        return tx.update(params, tx.init(params), params)[0]

    found = update({"kernel": kernel, "bias": jnp.ones(8)})
    flat = update({"kernel": kernel.reshape(36, 8)})["kernel"]
    np.testing.assert_allclose(found["kernel"], flat.reshape(kernel.shape), rtol=1e-5, atol=1e-7)
    singular = np.linalg.svd(np.asarray(flat), compute_uv=False)
    assert singular.max() / singular.min() < 2.0  # a Gaussian's are 2.8 apart
    assert np.sqrt(np.mean(np.square(flat))) == pytest.approx(0.2, rel=0.2)
    # A vector's first step is Adam's with Nesterov's momentum.
    np.testing.assert_allclose(found["bias"], -(1.0 + 0.9 * 0.1 / (1.0 - 0.9**2)), rtol=1e-4)


def test_ademamixs_slow_momentum_grows_slower_as_in_its_paper():
    config, steps = at("ademamix", 0.1, b1=0.8, b3=0.99, horizon_fraction=0.5), 12
    tx, params = BASELINES["ademamix"].make(config, 16), jnp.float32(0.0)
    state, update, left = tx.init(params), jax.jit(tx.update), [1.0]
    for _ in range(steps):
        _, state = update(jnp.float32(1.0), state, params)
        left.append(1.0 - float(state[0].m2))  # all b3 so far, multiplied
    t = np.minimum(np.arange(steps) / 8, 1.0)  # of T, where the schedule ends
    b3 = np.exp(np.log(0.8) * np.log(0.99) / ((1 - t) * np.log(0.99) + t * np.log(0.8)))
    assert b3[0] == pytest.approx(0.8) and b3[8] == pytest.approx(0.99)
    np.testing.assert_allclose(np.divide(left[1:], left[:-1]), b3, rtol=1e-5)


def test_ademamix_by_hand():
    config = at("ademamix", 0.1, b1=0.8, b2=0.95, b3=0.99, alpha=4.0)
    config |= {"warmup": 0.25, "weight_decay": 0.3, "horizon_fraction": 0.5}
    tx = BASELINES["ademamix"].make(config, 16)
    params = jnp.float32(2.0)
    state, update = tx.init(params), jax.jit(tx.update)
    x, m1, m2, nu = 2.0, 0.0, 0.0, 0.0
    for i, g in enumerate(np.random.default_rng(0).normal(size=8)):
        step, state = update(jnp.float32(g), state, params)
        params += step
        t = i / 8
        b3 = np.exp(np.log(0.8) * np.log(0.99) / ((1 - t) * np.log(0.99) + t * np.log(0.8)))
        m1, m2 = 0.8 * m1 + 0.2 * g, b3 * m2 + (1 - b3) * g
        nu = 0.95 * nu + 0.05 * g * g
        fast, second = m1 / (1 - 0.8 ** (i + 1)), nu / (1 - 0.95 ** (i + 1))
        direction = (fast + 4.0 * t * m2) / (np.sqrt(second) + 1e-8) + 0.3 * x
        fall = 0.5 - 0.5 * np.cos(np.pi * min(1.0, (8 - i) / 6))
        x -= 0.1 * min(1.0, (i + 1) / 2) * fall * direction
        assert float(params) == pytest.approx(x, rel=1e-5)


def test_schedule_free_is_judged_at_its_averaged_parameters():
    baseline, horizon, task = BASELINES["schedule_free"], 20, noisy()
    config = at("schedule_free", 0.3)
    starts = draw_starts(KEY, task, 8)
    trainer = Trainer(task, lambda c: baseline.make(c, horizon), horizon=horizon)
    settings = {name: np.array([value]) for name, value in config.items()}
    (curves,) = trainer.train(settings, starts)
    tx = baseline.make(config, horizon)

    def by_hand(start):
        params, state = start.params, tx.init(start.params)
        for i in range(horizon):
            key = jax.random.fold_in(start.key, i)
            params, state, _, _ = inner_step(task, tx, key, params, state, start.instance, ())
        averaged = contrib.schedule_free_eval_params(state, params)
        loss = lambda params: jnp.mean(
            jax.vmap(lambda b: task.loss(params, b, start.instance))(start.probes)
        )
        return loss(averaged), loss(params)

    averaged, last = jax.jit(jax.vmap(by_hand))(starts)
    assert not np.allclose(averaged, last, rtol=0.01)
    np.testing.assert_allclose(curves.final_loss, averaged, rtol=1e-3)


def test_a_control_at_factor_one_is_itself():
    params = {"x": jnp.ones(3)}
    for control in (optax.adam(0.1), lambda *, horizon: optax.adam(0.1)):
        tx = scaled(control).make({"learning_rate": 1.0, "horizon_fraction": 1.0}, 10)
        update, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(update["x"], -0.1, rtol=1e-5)


def test_a_control_is_told_parts_of_the_run():
    control = scaled(lambda *, horizon: optax.sgd(lambda count: 1.0 - count / horizon))
    params = {"x": jnp.ones(())}

    @jax.jit
    def second_update(fraction):
        tx = control.make({"learning_rate": 2.0, "horizon_fraction": fraction}, 10)
        _, state = tx.update(params, tx.init(params), params)
        return tx.update(params, state, params)[0]["x"]

    np.testing.assert_allclose([second_update(f) for f in (1.0, 0.2)], [-1.8, -1.0], rtol=1e-6)
    assert control.is_scheduled and not scaled(optax.sgd(0.1)).is_scheduled


def test_ranges_are_even_in_what_they_say():
    assert [Range(1.0, 3.0, 1.0).at(x) for x in (0, 0.5, 1)] == [1.0, 2.0, 3.0]
    logs = [Range(0.01, 1.0, 0.0, "log").at(x) for x in (0, 0.5, 1)]
    np.testing.assert_allclose(logs, [0.01, 0.1, 1.0])
    decays = [Range(0.9, 0.999, 0.9, "decay").at(x) for x in (0, 0.5, 1)]
    np.testing.assert_allclose(decays, [0.9, 0.99, 0.999])
    np.testing.assert_allclose(half_decades(-2, 1), [0.1, 0.1 * 10**0.5, 1.0, 10**0.5])


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match=r"`baselines` must be among adam, .*; got amad\. Try"):
        check_baselines(["amad"])
    for names in ([], ["adam", "adam"]):
        with pytest.raises(ValueError, match="`baselines` must name different ones"):
            check_baselines(names)
    check_baselines(DEFAULT_BASELINES)
