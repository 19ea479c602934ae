"""Optimizers that policies control, and how far actions change their hyperparameters."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o import registry, release
from l2o.optimizers import features


@dataclass(frozen=True)
class Hyperparameter:
    """Range of a hyperparameter, and the scale on which actions change it.

    It is encoded as ln(value), or as ln(1 - value) if `complement`; actions are added to the code.

    >>> rate = Hyperparameter(low=0.001, high=1.0, step=0.5)
    >>> round(float(rate.decode(rate.encode(0.1) + rate.step)), 3)
    0.165

    Attributes:
        low: Smallest value.
        high: Largest value.
        step: Change of the code by an action of 1.
        complement: Whether to encode 1 - value in place of the value, as suits decays.
    """

    low: float
    high: float
    step: float
    complement: bool = False

    def encode(self, value: float) -> float:
        """Encode a value."""
        return math.log(1.0 - value if self.complement else value)

    def decode(self, code: jax.Array) -> jax.Array:
        """Decode the value of a code."""
        return -jnp.expm1(code) if self.complement else jnp.exp(code)

    @property
    def code_range(self) -> tuple[float, float]:
        """Lowest and highest code."""
        low, high = sorted((self.encode(self.low), self.encode(self.high)))
        return low, high


HYPERPARAMETERS: Mapping[str, Hyperparameter] = {
    "momentum": Hyperparameter(0.0, 0.999, 0.3, complement=True),
    "b1": Hyperparameter(0.0, 0.999, 0.3, complement=True),
    "b2": Hyperparameter(0.5, 0.99999, 0.3, complement=True),
    "weight_decay": Hyperparameter(1e-8, 1.0, 0.5),
    "max_norm": Hyperparameter(1e-3, 1e3, 0.5),
    "batch_fraction": Hyperparameter(1 / 16, 1.0, 0.3),
}
"""Hyperparameters that can be controlled besides the learning rate, whose range the design is
given."""

INITIAL_VALUES: Mapping[str, float] = {
    "momentum": 0.9,
    "b1": 0.9,
    "b2": 0.999,
    "weight_decay": 1e-4,
    "max_norm": 10.0,
    "batch_fraction": 1.0,
}
"""Values of controlled hyperparameters at the start of a run."""


def sgdm(
    learning_rate: Any, momentum: Any = 0.9, weight_decay: Any = None, max_norm: Any = None
) -> optax.GradientTransformation:
    """Gradient descent with heavy-ball momentum."""
    parts = [optax.clip_by_global_norm(max_norm)] if max_norm is not None else []
    parts += [optax.add_decayed_weights(weight_decay)] if weight_decay is not None else []
    return optax.chain(*parts, optax.sgd(learning_rate, momentum=momentum))


def adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    weight_decay: Any = None,
    max_norm: Any = None,
) -> optax.GradientTransformation:
    """Adam, with decoupled weight decay if there is any."""
    parts = [optax.clip_by_global_norm(max_norm)] if max_norm is not None else []
    parts += [optax.scale_by_adam(b1=b1, b2=b2, eps_root=features.TINY)]
    parts += [optax.add_decayed_weights(weight_decay)] if weight_decay is not None else []
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


class BaseOptimizer(NamedTuple):
    """Optimizer that a policy controls.

    Attributes:
        name: Name, as users give it.
        make: Function from hyperparameters to the transformation; that of a learned optimizer
            takes the `horizon`, too.
        hyperparameters: Names of those that can be controlled besides the learning rate.
        sha256: Checksum of the release file of a learned optimizer, else empty.
    """

    name: str
    make: Callable[..., optax.GradientTransformation]
    hyperparameters: tuple[str, ...]
    sha256: str = ""


BASE_OPTIMIZERS: Mapping[str, BaseOptimizer] = {
    "sgdm": BaseOptimizer("sgdm", sgdm, ("momentum", "weight_decay", "max_norm")),
    "adam": BaseOptimizer("adam", adam, ("b1", "b2", "weight_decay", "max_norm")),
}
"""Base optimizers by name."""


def base_optimizer(name: str) -> BaseOptimizer:
    """Find the base optimizer of a name.

    >>> base_optimizer("sgdm").hyperparameters
    ('momentum', 'weight_decay', 'max_norm')
    >>> base_optimizer("optax:lion").hyperparameters
    ('b1', 'b2', 'weight_decay')

    Args:
        name: Name in `BASE_OPTIMIZERS`; "module:attribute" of a function of `learning_rate` that
            returns an optax transformation that needs no more than gradients, parameters and the
            loss, such as "optax:lion", of which those arguments can be controlled that are in
            `HYPERPARAMETERS`; or the name of a learned optimizer that comes with l2o, whose steps
            are multiplied by the rate.

    Raises:
        ValueError: If there is none.
    """
    if name in BASE_OPTIMIZERS:
        return BASE_OPTIMIZERS[name]
    if ":" not in name:
        if name not in release.names():
            raise registry.unknown_name_error("base", name, (*BASE_OPTIMIZERS, *release.names()))
        lopt, theta = release.load(name)

        def direction(learning_rate: Any, horizon: Any) -> optax.GradientTransformation:
            tx = lopt.transform(theta, horizon=horizon)
            return optax.chain(tx, optax.scale(learning_rate))

        return BaseOptimizer(name, direction, (), sha256=release.checksum(name))
    make = registry.import_by_path("base", name, BASE_OPTIMIZERS)
    try:
        taken = inspect.signature(make).parameters
    except (TypeError, ValueError):
        taken = {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [n for n, p in taken.items() if p.default is p.empty and p.kind not in kinds]
    if "learning_rate" not in taken or set(needed) - {"learning_rate"}:
        raise ValueError(
            f"`base` must be a function that takes learning_rate and needs nothing else; got {name}"
            f", which needs {', '.join(needed) or 'nothing'}. Try optax:lion."
        )
    controlled = (n for n in HYPERPARAMETERS if n in taken and n != "batch_fraction")
    return BaseOptimizer(name, make, tuple(controlled))


def check_base(base: BaseOptimizer, tx: optax.GradientTransformationExtraArgs) -> None:
    """Raise a `ValueError` unless the optimizer can take a step with what policies give it."""
    one = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        jax.eval_shape(lambda x: tx.update(x, tx.init(x), x, value=jnp.sum(x)), one)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`base` must be an optimizer that takes steps from gradients, parameters and the loss "
            f"at any rate; got {base.name} ({str(error).splitlines()[0]}). Try optax:lion."
        ) from error
