"""AdafacMLP: a per-parameter MLP on Adafactor-like features ("small_fc_lopt", Metz et al. 2022).

Accumulators of each tensor, with learned decays: momenta m (3), second moment v (1) and factored
second moments R, C (3), kept over the two largest axes; below rank 2 a full second moment D
stands for both. With r = 1/sqrt(v + 1e-6) and row/column factors ρ, γ the 28 features are

    g, φ, m, v, m·r, r, g·ρ·γ, R, C, 1/sqrt(R), 1/sqrt(C), m·ρ·γ

each divided by its root mean square over the tensor, then eleven progress embeddings. An MLP
39-4-4-2 gives a direction d and a log magnitude m: φ ← φ - step_mult · d · exp(exp_mult · m).
"""

import jax
import jax.numpy as jnp

from l2o.learned_optimizer import (
    Horizon,
    LearnedOptimizer,
    Theta,
    check_numbers,
    check_sizes,
    design,
)
from l2o.optimizers import accumulators, features, nets
from l2o.optimizers.accumulators import (
    FACTORED_DECAYS,
    MOMENTUM_DECAYS,
    RMS_DECAYS,
    Accumulators,
    Decays,
    accumulate,
    moment_features,
)
from l2o.optimizers.per_tensor import per_tensor_transform
from l2o.task import Key

NUM_INPUTS = 28 + len(features.PROGRESS_SCALES)


def adafac_features(g: jax.Array, p: jax.Array, found: Accumulators) -> list[jax.Array]:
    """Compute the 28 features, not normalised; row and column statistics stay rows and columns."""
    moments, factored = moment_features(g, found, eps=1e-6)
    return [g, p, *moments, *factored]


@design
def adafac_mlp(
    hidden_size: int = 4,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
) -> LearnedOptimizer:
    """AdafacMLP: a per-parameter MLP on Adafactor-like features (Metz et al. 2022).

    It has 197 meta-parameters by default.

    >>> import jax, jax.numpy as jnp, l2o
    >>> lopt = l2o.adafac_mlp()
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params)

    Args:
        hidden_size: Width of the hidden layers; 4 in the original, 32 in muLO and ELO.
        hidden_layers: Number of hidden layers.
        step_mult: Scale of the step, in units of the parameters.
        exp_mult: Scale of the log magnitude.

    Raises:
        ValueError: If a size is below 1, or a number is not finite.
    """
    check_sizes(hidden_size=hidden_size, hidden_layers=hidden_layers)
    check_numbers(step_mult=step_mult, exp_mult=exp_mult)

    def init(key: Key) -> Theta:
        return {
            "momentum_decays": jnp.zeros(len(MOMENTUM_DECAYS), jnp.float32),
            "rms_decays": jnp.zeros(len(RMS_DECAYS), jnp.float32),
            "factored_decays": jnp.zeros(len(FACTORED_DECAYS), jnp.float32),
            "mlp": nets.mlp_init(key, (NUM_INPUTS, *[hidden_size] * hidden_layers, 2)),
        }

    def update_tensor(g, p, found, decays, mlp, bias):
        found = accumulate(g, found, decays)
        inputs, scales = features.with_rms_scales(adafac_features, g, p, found)
        direction, magnitude = nets.mlp_per_parameter(mlp, inputs, bias, scales)
        return -step_mult * direction * jnp.exp(exp_mult * magnitude), found

    def transform(theta: Theta, *, horizon: Horizon = None):
        del horizon
        decays = Decays(
            momentum=features.decays_from_offsets(MOMENTUM_DECAYS, theta["momentum_decays"]),
            rms=features.decays_from_offsets(RMS_DECAYS, theta["rms_decays"]),
            factored=features.decays_from_offsets(FACTORED_DECAYS, theta["factored_decays"]),
        )

        def shared(count, run_state):
            del run_state
            bias = nets.folded_bias(theta["mlp"], features.progress_tanh(count))
            return decays, theta["mlp"], bias

        return per_tensor_transform("adafac_mlp", accumulators.init, update_tensor, shared)

    return LearnedOptimizer("adafac_mlp", init, transform)
