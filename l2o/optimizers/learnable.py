"""SGD, momentum SGD and Adam whose hyperparameters are the meta-parameters.

One to four numbers: small enough for a grid search to check what meta-training finds. Rates and
epsilon are stored as logarithms and decays as ln(1 - β), so that additive noise is relative.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import Horizon, LearnedOptimizer, Theta, design
from l2o.optimizers import features
from l2o.optimizers.per_tensor import as_float32
from l2o.task import Key


def _log(name: str, value: float) -> jax.Array:
    if not value > 0:
        raise ValueError(f"`{name}` must be positive; got {value}. Try {name}=0.01.")
    return jnp.log(jnp.float32(value))


def _log_one_minus(name: str, value: float) -> jax.Array:
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1); got {value}. Try {name}=0.9.")
    return jnp.log1p(-jnp.float32(value))


def _in_float32(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
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
    start: dict[str, jax.Array],
    make: Callable[[Theta], optax.GradientTransformation],
) -> LearnedOptimizer:
    def init(key: Key) -> Theta:
        del key
        return dict(start)

    def transform(
        theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        del horizon
        return _in_float32(make(theta))

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
    start = {"log_learning_rate": _log("learning_rate", learning_rate)}
    return _learnable(
        "learnable_sgd",
        start,
        lambda theta: optax.sgd(jnp.exp(theta["log_learning_rate"])),
    )


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
    start = {
        "log_learning_rate": _log("learning_rate", learning_rate),
        "log_one_minus_momentum": _log_one_minus("momentum", momentum),
    }
    return _learnable(
        "learnable_sgdm",
        start,
        lambda theta: optax.sgd(
            jnp.exp(theta["log_learning_rate"]),
            momentum=-jnp.expm1(theta["log_one_minus_momentum"]),  # pyright: ignore[reportArgumentType]
        ),
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
    start = {
        "log_learning_rate": _log("learning_rate", learning_rate),
        "log_one_minus_b1": _log_one_minus("b1", b1),
        "log_one_minus_b2": _log_one_minus("b2", b2),
        "log_eps": _log("eps", eps),
    }
    return _learnable(
        "learnable_adam",
        start,
        lambda theta: optax.adam(
            jnp.exp(theta["log_learning_rate"]),
            b1=-jnp.expm1(theta["log_one_minus_b1"]),
            b2=-jnp.expm1(theta["log_one_minus_b2"]),
            eps=jnp.exp(theta["log_eps"]),
            eps_root=features.TINY,
        ),
    )
