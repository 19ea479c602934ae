"""Random streams of a run: one seed, and a tag for what the stream is used for."""

from collections.abc import Mapping
from typing import Literal

import jax

from l2o.task import Key

Purpose = Literal["meta_training", "evaluation", "diagnosis"]

TAGS: Mapping[Purpose, int] = {"meta_training": 1, "evaluation": 2, "diagnosis": 3}
"""What is folded into the seed; distinct, so that nothing evaluated on was meta-trained on."""


def stream(seed: int, purpose: Purpose) -> Key:
    """The key that everything random in one part of a run derives from.

    Raises:
        ValueError: if the seed is not one of the 2³² that JAX tells apart.
    """
    check_seed(seed)
    return jax.random.fold_in(jax.random.key(seed), TAGS[purpose])


def check_seed(seed: int) -> None:
    """Raises a `ValueError` unless a seed is one of the 2³² that JAX tells apart."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be between 0 and 2**32 - 1; got {seed}. Try seed=0.")
