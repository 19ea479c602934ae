"""MLPLOpt: a per-parameter MLP on the gradient, the parameter and six momenta (Metz et al. 2019).

Features of a tensor, each divided by its root mean square: g, φ, m₁..m₆ with decays
(0.1, 0.5, 0.9, 0.99, 0.999, 0.9999); then the eleven progress embeddings tanh(t/τ - 1). An MLP
19-32-32-2 reads them at every element and gives a direction d and a log magnitude m:

    φ ← φ - step_mult · d · exp(exp_mult · m)
"""

import jax.numpy as jnp

from l2o.learned_optimizer import (
    Horizon,
    LearnedOptimizer,
    Theta,
    check_numbers,
    check_sizes,
    design,
)
from l2o.optimizers import features, nets
from l2o.optimizers.per_tensor import per_tensor_transform
from l2o.task import Key

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
NUM_INPUTS = 2 + len(DECAYS) + len(features.PROGRESS_SCALES)


@design
def mlp_lopt(
    hidden_size: int = 32,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
) -> LearnedOptimizer:
    """MLPLOpt: a per-parameter MLP on the gradient, the parameter and momenta (Metz et al. 2019).

    It has 1,762 meta-parameters by default, and keeps six floats for each parameter.

    >>> import jax, jax.numpy as jnp, l2o
    >>> lopt = l2o.mlp_lopt()
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params)

    Args:
        hidden_size: Width of the hidden layers.
        hidden_layers: Number of hidden layers.
        step_mult: Scale of the step, in units of the parameters.
        exp_mult: Scale of the log magnitude.

    Raises:
        ValueError: If a size is below 1, or a number is not finite.
    """
    check_sizes(hidden_size=hidden_size, hidden_layers=hidden_layers)
    check_numbers(step_mult=step_mult, exp_mult=exp_mult)

    def init(key: Key) -> Theta:
        return nets.mlp_init(key, (NUM_INPUTS, *[hidden_size] * hidden_layers, 2))

    def init_accumulators(p):
        return tuple(jnp.zeros_like(p, jnp.float32) for _ in DECAYS)

    def update_tensor(g, p, momenta, mlp, bias):
        momenta = features.moving_averages(momenta, g, DECAYS)
        inputs = [g, p, *momenta]
        scales = features.rms_scales(inputs)
        direction, magnitude = nets.mlp_per_parameter(mlp, inputs, bias, scales)
        return -step_mult * direction * jnp.exp(exp_mult * magnitude), momenta

    def transform(theta: Theta, *, horizon: Horizon = None):
        del horizon

        def shared(count, run_state):
            del run_state
            return theta, nets.folded_bias(theta, features.progress_tanh(count))

        return per_tensor_transform("mlp_lopt", init_accumulators, update_tensor, shared)

    return LearnedOptimizer("mlp_lopt", init, transform)
