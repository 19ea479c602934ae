"""NominalMLP before learning."""

import jax.numpy as jnp
from design_cases import HORIZON, SMALL, assert_close, case, run

from l2o.optimizers.nominal_mlp import nominal_mlp


def test_untrained_nominal_mlp_is_a_scheduled_sign_step(key):
    """On a constant gradient Adam's direction is the sign, and the rate falls by 1 - t/T."""
    lopt, c = nominal_mlp(rate=0.3), case(SMALL)
    found, _ = run(lopt.transform(lopt.init(key), horizon=HORIZON), [c, c, c])
    for t, updates in enumerate(found):
        rate = 0.3 * (1 - t / HORIZON)
        expected = {name: -rate * jnp.sign(g) for name, g in c.grads.items()}
        assert_close(updates, expected, rtol=1e-3)
