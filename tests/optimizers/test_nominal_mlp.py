"""NominalMLP before learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from design_cases import HORIZON, SMALL, assert_close, case, run

from l2o.optimizers.loss_trend import LOSS_DECAYS, run_statistics
from l2o.optimizers.nominal_mlp import nominal_mlp


def test_untrained_nominal_mlp_is_a_scheduled_sign_step(key):
    """On a constant gradient Adam's direction is the sign, and the rate falls by 1 - t/T."""
    lopt, c = nominal_mlp(rate=0.3), case(SMALL)
    found, _ = run(lopt.transform(lopt.init(key), horizon=HORIZON), [c, c, c])
    for t, updates in enumerate(found):
        rate = 0.3 * (1 - t / HORIZON)
        expected = {name: -rate * jnp.sign(g) for name, g in c.grads.items()}
        assert_close(updates, expected, rtol=1e-3)


def remembered(losses):
    """What a run remembers after these losses: the first one, and both averages, corrected."""
    lopt, c = nominal_mlp(), case(SMALL)
    tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=HORIZON)
    _, state = run(tx, [c._replace(value=jnp.float32(loss)) for loss in losses])
    return state, state.run_state.losses / (1.0 - jnp.array(LOSS_DECAYS) ** len(losses))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_counts_as_the_average_of_those_before(bad):
    """Which is of losses, not of losses and the zeros that averages start with."""
    state, averages = remembered([1.0, bad, 1.0, bad])
    np.testing.assert_allclose(averages, 1.0, rtol=1e-5)
    assert state.run_state.first_loss == 1.0


def test_the_first_loss_is_the_first_finite_one():
    state, averages = remembered([np.nan, np.inf, 2.0])
    np.testing.assert_allclose(averages, 2.0, rtol=1e-5)
    assert state.run_state.first_loss == 2.0
    state, _ = remembered([np.nan])
    assert np.all(np.isfinite(run_statistics(state.run_state, state.count, HORIZON)))
