"""Release files that ship: they load, and still do what they did when they were made."""

import jax
import numpy as np
import pytest

import l2o
from l2o.tasks.digits import digits_mlp

FINAL_LOSS = {"digits": 0.0609}
"""Median probe loss of 8 seeds after 100 steps on the first evaluation task, when released."""


@pytest.mark.parametrize("name", FINAL_LOSS)
def test_a_release_reproduces_its_loss(name):
    lopt, theta = l2o.load(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) > 0
    curves = l2o.evaluate(
        l2o.stream(0, "evaluation"),
        digits_mlp().evaluation[0],
        {name: lambda *, horizon: lopt.transform(theta, horizon=horizon)},
        horizon=100,
        num_seeds=8,
    )
    assert np.median(curves[name].final_loss) == pytest.approx(FINAL_LOSS[name], rel=0.05)
