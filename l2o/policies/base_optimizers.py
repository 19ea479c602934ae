"""The optimizers that policies control, and how their hyperparameters are turned."""

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
class Knob:
    """How a hyperparameter is turned.

    Attributes:
        low: smallest value.
        high: largest value.
        step: what an action of 1 adds to the logarithm.
        of_rest: turn ln(1 - value) in place of ln(value), for decays.
    """

    low: float
    high: float
    step: float
    of_rest: bool = False

    def encode(self, value: float) -> float:
        """Where the knob stands at a value."""
        return math.log(1.0 - value if self.of_rest else value)

    def decode(self, position: jax.Array) -> jax.Array:
        """The value at a position."""
        return -jnp.expm1(position) if self.of_rest else jnp.exp(position)

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest position."""
        low, high = sorted((self.encode(self.low), self.encode(self.high)))
        return low, high


KNOBS: Mapping[str, Knob] = {
    "momentum": Knob(0.0, 0.999, 0.3, of_rest=True),
    "b1": Knob(0.0, 0.999, 0.3, of_rest=True),
    "b2": Knob(0.5, 0.99999, 0.3, of_rest=True),
    "weight_decay": Knob(1e-8, 1.0, 0.5),
    "max_norm": Knob(1e-3, 1e3, 0.5),
    "batch_fraction": Knob(1 / 16, 1.0, 0.3),
}
"""What can be turned besides the learning rate, whose range the design is given."""

STARTS: Mapping[str, float] = {
    "momentum": 0.9,
    "b1": 0.9,
    "b2": 0.999,
    "weight_decay": 1e-4,
    "max_norm": 10.0,
    "batch_fraction": 1.0,
}


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


class Base(NamedTuple):
    """An optimizer to control.

    Attributes:
        name: of it.
        make: from hyperparameters to the transformation.
        knobs: the hyperparameters that can be turned besides the learning rate.
        sha256: of a learned one's release file, else empty; its `make` takes the `horizon`, too.
    """

    name: str
    make: Callable[..., optax.GradientTransformation]
    knobs: tuple[str, ...]
    sha256: str = ""


BASES: Mapping[str, Base] = {
    "sgdm": Base("sgdm", sgdm, ("momentum", "weight_decay", "max_norm")),
    "adam": Base("adam", adam, ("b1", "b2", "weight_decay", "max_norm")),
}
"""Base optimizers by name."""


def base_of(name: str) -> Base:
    """The optimizer of this name.

    Args:
        name: one of `BASES`; "module:attribute" of a function of `learning_rate` that returns an
            optax transformation that needs no more than gradients, parameters and the loss, such
            as "optax:lion", whose knobs are those of its arguments that are in `KNOBS`; or the name
            of a learned optimizer that comes with l2o, whose steps are multiplied by the rate.

    Raises:
        ValueError: if there is none.
    """
    if name in BASES:
        return BASES[name]
    if ":" not in name:
        if name not in release.names():
            raise registry.unknown_name_error("base", name, (*BASES, *release.names()))
        lopt, theta = release.load(name)

        def direction(learning_rate: Any, horizon: Any) -> optax.GradientTransformation:
            tx = lopt.transform(theta, horizon=horizon)
            return optax.chain(tx, optax.scale(learning_rate))

        return Base(name, direction, (), sha256=release.checksum(name))
    make = registry.import_by_path("base", name, BASES)
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
    return Base(name, make, tuple(k for k in KNOBS if k in taken and k != "batch_fraction"))


def check_base(base: Base, tx: optax.GradientTransformationExtraArgs) -> None:
    """Raises a `ValueError` unless it can take a step with what policies give it."""
    one = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        jax.eval_shape(lambda x: tx.update(x, tx.init(x), x, value=jnp.sum(x)), one)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`base` must be an optimizer that takes steps from gradients, parameters and the loss "
            f"at any rate; got {base.name} ({str(error).splitlines()[0]}). Try optax:lion."
        ) from error
