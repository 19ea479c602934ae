"""Schedules, against those of optax."""

import jax
import numpy as np
import optax

from l2o.hpo.schedule import Hyperparameters, schedule, scheduled_sgd


def test_a_schedule_is_a_cosine_between_its_ends():
    rows = schedule(Hyperparameters(0.2, 0.1, end=0.25), 50)
    theirs = optax.cosine_decay_schedule(0.2, 50, alpha=0.25)
    np.testing.assert_allclose(rows[:, 0], [theirs(i) for i in range(50)], rtol=1e-5)
    np.testing.assert_allclose(rows[:, 1], 0.9)
    np.testing.assert_allclose(schedule(Hyperparameters(0.2, 0.1, end=1.0), 50)[:, 0], 0.2)


def test_sgd_by_rows_is_sgd_with_its_schedule():
    rows = schedule(Hyperparameters(0.2, 0.1, end=0.25), 9)
    theirs = optax.cosine_decay_schedule(0.2, 9, alpha=0.25)
    ours, theirs = scheduled_sgd(jax.numpy.asarray(rows)), optax.sgd(theirs, momentum=0.9)
    params = {"w": jax.numpy.array([1.0, -2.0])}
    a, b = (params, ours.init(params)), (params, theirs.init(params))
    for _ in range(9):
        a, b = (
            (optax.apply_updates(p, u), s)
            for tx, (p, state) in ((ours, a), (theirs, b))
            for u, s in [tx.update(jax.tree.map(lambda x: x**3, p), state, p)]
        )
    np.testing.assert_allclose(a[0]["w"], b[0]["w"], rtol=1e-6)
