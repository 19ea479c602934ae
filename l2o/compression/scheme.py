"""What every way to compress a network gives: a budget, and the network that given counts make."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import jax

from l2o.compression.budget import Budget
from l2o.compression.trained_model import Params

SchemeName = Literal["weights", "units", "bits"]

Guide = Any
"""Pytree of arrays that a scheme works out of the parameters once, such as ranks of weights."""


@dataclass(frozen=True, eq=False)
class Scheme:
    """Way to compress networks of one architecture.

    Attributes:
        name: What is pruned, "weights" or whole "units", or "bits" for quantization.
        budget: What each group may have; the groups are layers, or the units of a layer.
        magnitudes: Function `(params) -> magnitudes` of what a group may lose, an array a group,
            comparable between groups; () for quantization.
        prepare: Function `(params) -> guide`, from the trained parameters; traceable.
        compress: Function `(params, guide, counts) -> params`, traceable. The shapes stay;
            gradients reach the weights that are kept, and pass through rounding.
    """

    name: SchemeName
    budget: Budget
    magnitudes: Callable[[Params], tuple[jax.Array, ...]]
    prepare: Callable[[Params], Guide]
    compress: Callable[[Params, Guide, jax.Array], Params]


def check_share(name: str, share: float) -> None:
    """Raise a `ValueError` unless a share of the whole is above 0 and below 1."""
    if not isinstance(share, Real) or not 0 < share < 1:
        raise ValueError(f"`{name}` must be above 0 and below 1; got {share!r}. Try {name}=0.1.")
