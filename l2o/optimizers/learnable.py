"""SGD, momentum SGD and Adam whose hyperparameters are the meta-parameters.

One to four numbers: small enough for a grid search to check what meta-training finds. Rates and
epsilon are stored as logarithms and decays as ln(1 - β), so that additive noise is relative.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import Horizon, LearnedOptimizer, Theta, design
from l2o.optimizers import features
from l2o.optimizers.per_tensor import as_float32
from l2o.task import Key


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Give `tx` float32 accumulators; updates come back in the gradients' dtypes."""

    def init(params: optax.Params) -> optax.OptState:
        return tx.init(as_float32(params))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        steps, state = tx.update(as_float32(updates), state)
        return jax.tree.map(lambda u, g: u.astype(jnp.result_type(g)), steps, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _learnable(
    name: str,
    make: Callable[..., optax.GradientTransformation],
    positive: Mapping[str, float],
    decays: Mapping[str, float],
) -> LearnedOptimizer:
    """A design from an optax optimizer, its positive arguments and its decay rates."""
    for k, value in positive.items():
        if not value > 0:
            raise ValueError(f"`{k}` must be positive; got {value}. Try {k}=0.01.")
    for k, value in decays.items():
        if not 0 <= value < 1:
            raise ValueError(f"`{k}` must be in [0, 1); got {value}. Try {k}=0.9.")

    start = {f"log_{k}": jnp.log(jnp.float32(v)) for k, v in positive.items()}
    start |= {f"log_one_minus_{k}": jnp.log1p(-jnp.float32(v)) for k, v in decays.items()}

    def init(key: Key) -> Theta:
        del key
        return dict(start)

    def transform(theta: Theta, *, horizon: Horizon = None):
        del horizon
        arguments = {k: jnp.exp(theta[f"log_{k}"]) for k in positive}
        arguments |= {k: -jnp.expm1(theta[f"log_one_minus_{k}"]) for k in decays}
        return _in_float32(make(**arguments))

    return LearnedOptimizer(name, init, transform)


@design
def learnable_sgd(learning_rate: float = 0.01) -> LearnedOptimizer:
    """Gradient descent with a learned rate, exp(theta["log_learning_rate"]).

    >>> import jax, l2o
    >>> l2o.learnable_sgd(learning_rate=1.0).init(jax.random.key(0))
    {'log_learning_rate': Array(0., dtype=float32)}

    Args:
        learning_rate: Rate before learning.
    """
    return _learnable("learnable_sgd", optax.sgd, {"learning_rate": learning_rate}, {})


@design
def learnable_sgdm(learning_rate: float = 0.01, momentum: float = 0.9) -> LearnedOptimizer:
    """Gradient descent with a learned rate and a learned heavy-ball momentum.

    >>> import jax, l2o
    >>> sorted(l2o.learnable_sgdm().init(jax.random.key(0)))
    ['log_learning_rate', 'log_one_minus_momentum']

    Args:
        learning_rate: Rate before learning.
        momentum: Momentum before learning.
    """
    return _learnable(
        "learnable_sgdm", optax.sgd, {"learning_rate": learning_rate}, {"momentum": momentum}
    )


@design
def learnable_adam(
    learning_rate: float = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> LearnedOptimizer:
    """Adam with its four hyperparameters learned (Kingma and Ba, 2015).

    >>> import jax, l2o
    >>> sorted(l2o.learnable_adam().init(jax.random.key(0)))
    ['log_eps', 'log_learning_rate', 'log_one_minus_b1', 'log_one_minus_b2']

    Args:
        learning_rate: Rate before learning.
        b1: Decay rate for the moving average of gradients before learning.
        b2: Decay rate for the moving average of squared gradients before learning.
        eps: Term added to the denominator before learning.
    """
    make = partial(optax.adam, eps_root=features.TINY)
    positive = {"learning_rate": learning_rate, "eps": eps}
    return _learnable("learnable_adam", make, positive, {"b1": b1, "b2": b2})
