"""Designs whose meta-parameters are hyperparameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from design_cases import SMALL, TABLE, assert_close, case, run

from l2o.optimizers.learnable import learnable_adam, learnable_sgd, learnable_sgdm


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learnable_sgd", optax.sgd(0.2)),
        ("learnable_sgdm", optax.sgd(0.1, momentum=0.8)),
        ("learnable_adam", optax.adam(0.1)),
    ],
)
def test_learnable_designs_start_as_their_namesakes(name, expected, key):
    cases = [case(SMALL, seed) for seed in range(3)]
    found, _ = run(TABLE[name].transform(TABLE[name].init(key)), cases)
    assert_close(found, run(optax.with_extra_args_support(expected), cases)[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learnable_sgd(learning_rate=0.0), "`learning_rate` must be positive; got 0.0"),
        (lambda: learnable_sgdm(momentum=1.0), r"`momentum` must be in \[0, 1\); got 1.0"),
        (lambda: learnable_adam(b2=-0.1), r"`b2` must be in \[0, 1\); got -0.1"),
        (lambda: learnable_adam(eps=-1.0), "`eps` must be positive; got -1.0"),
    ],
)
def test_bad_hyperparameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_adam_can_be_differentiated_where_a_gradient_is_always_zero(key):
    """As those of pixels that no image uses are; the slope of Adam's root is infinite there."""
    lopt = learnable_adam(learning_rate=0.1)

    def final_loss(theta):
        tx, x = lopt.transform(theta), jnp.array([1.0, 2.0])
        state = tx.init(x)
        for _ in range(2):
            updates, state = tx.update(jnp.array([2.0, 0.0]) * x, state, x)
            x = optax.apply_updates(x, updates)
        return x[0] ** 2

    gradient = jax.jit(jax.grad(final_loss))(lopt.init(key))
    assert np.all(np.isfinite(jax.tree.leaves(gradient)))
    # Two steps of almost exactly the rate, which falls with it: d(1 - 2r)²/d ln r = -4r(1 - 2r).
    assert gradient["log_learning_rate"] == pytest.approx(-4 * 0.1 * 0.8, rel=0.02)
