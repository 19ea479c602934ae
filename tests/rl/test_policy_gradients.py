"""REINFORCE and PPO as learners that resume and are spread over devices."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from walk import HEAD, LINEAR, expected_return, walk

from l2o.estimators.estimator import average_estimators
from l2o.learner import gradient_learner
from l2o.outer_loop import fit
from l2o.policies.policy import gru_actor
from l2o.rl.ppo import ppo_learner, with_critic
from l2o.rl.reinforce import reinforce
from l2o.runs.folder import RunFolder

RECURRENT = gru_actor(1, 1, 3)


def tiny_ppo(mesh=None, actor=RECURRENT, horizons=(16,)):
    environments = {f"of {horizon}": walk(4, horizon) for horizon in horizons}
    return actor, ppo_learner(
        environments,
        actor,
        HEAD,
        optax.adam(0.01),
        num_pairs=16,
        gae_lambda=0.95,
        epochs=2,
        minibatches=4,
        ema_decay=0.9,
        weights={name: i + 1.0 for i, name in enumerate(environments)},
        mesh=mesh,
    )


def tiny_reinforce(mesh=None, actor=LINEAR, horizons=(16,)):
    estimators = {
        f"of {horizon}": reinforce(walk(4, horizon), actor, HEAD, num_groups=16, mesh=mesh)
        for horizon in horizons
    }
    learner = gradient_learner(average_estimators(estimators), optax.adam(0.01))
    return actor, with_critic(learner, HEAD, walk(4, horizons[0]))


LEARNERS = {
    "ppo": tiny_ppo,
    "reinforce": tiny_reinforce,
    "ppo_of_two": functools.partial(tiny_ppo, horizons=(8, 16)),
    "reinforce_of_two": functools.partial(tiny_reinforce, horizons=(8, 16)),
    "recurrent_reinforce": functools.partial(tiny_reinforce, actor=RECURRENT),
}


def all_slow_but(quick):
    return [n if n == quick else pytest.param(n, marks=pytest.mark.slow) for n in LEARNERS]


@pytest.mark.parametrize("name", all_slow_but("reinforce"))
def test_two_devices_do_as_one(name):
    mesh = jax.make_mesh((2,), ("population",), axis_types=(AxisType.Auto,))
    found = []
    for devices in (None, mesh):
        actor, learner = LEARNERS[name](devices)
        state = jax.jit(learner.init)(jax.random.key(0), actor.init(jax.random.key(1)))
        step = jax.jit(learner.step)
        for k in range(4):
            state, metrics = step(jax.random.key(k), state, learner.data)
        found.append((state, metrics))
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", all_slow_but("ppo"))
def test_stopped_and_resumed_is_bit_identical(name, tmp_path):
    def run(folder, stops):
        actor, learner = LEARNERS[name]()
        run = RunFolder.open(tmp_path / folder, {}, resume=(tmp_path / folder).exists())
        return learner, fit(
            jax.random.key(0),
            learner,
            actor.init(jax.random.key(1)),
            num_steps=12,
            log_every=3,
            checkpoint_every=3,
            run=run,
            should_stop=stops,
        )

    _, whole = run("whole", None)
    counter = itertools.count(1)
    _, part = run("parts", lambda: next(counter) == 2)
    assert part.step == 6
    learner, resumed = run("parts", None)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (tmp_path / "whole/metrics.jsonl").read_text().count("\n") == 4
    started = LEARNERS[name]()[0].init(jax.random.key(0))
    assert jax.tree.structure(learner.theta(resumed)) == jax.tree.structure(started)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_learning_earns_more(name):
    actor, learner = LEARNERS[name](actor=LINEAR)
    state = jax.jit(learner.init)(jax.random.key(0), actor.init(jax.random.key(1)))
    step = jax.jit(learner.step)
    for k in range(100):
        state, _ = step(jax.random.key(k), state, learner.data)
    before, after = (
        expected_return(theta, HEAD.init_log_std(), 16)
        for theta in (actor.init(jax.random.key(1)), learner.theta(state))
    )
    assert after > before + 0.5 * abs(before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, discount=1.5), "`discount` must be in"),
        (lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, baseline="mean"), "`baseline` must be"),
        (
            lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, group_size=3),
            "`group_size` must be even",
        ),
        (lambda e: reinforce(e, LINEAR, HEAD, num_groups=0), "`num_groups` must be at least 1"),
        (lambda e: ppo(e, minibatches=3), "`minibatches` must divide the 4 groups; got 3.*=4"),
        (lambda e: ppo(e, epochs=0), "`epochs` must be at least 1"),
        (lambda e: ppo(e, gae_lambda=2.0), "`gae_lambda` must be in"),
        (lambda e: ppo(e, clip_ratio=0.0), "`clip_ratio` must be positive"),
        (lambda e: ppo(e, discount=-0.1), "`discount` must be in"),
        (lambda e: ppo(e, entropy_weight=np.nan), "`entropy_weight` must be finite.*got nan"),
        (
            lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, entropy_weight=-1.0),
            "`entropy_weight` must be finite and not negative; got -1.0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(walk(2))


def ppo(environment, **settings):
    return ppo_learner(
        {"walk": environment},
        LINEAR,
        HEAD,
        optax.adam(0.01),
        num_pairs=4,
        **settings,
    )
