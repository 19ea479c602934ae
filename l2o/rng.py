"""Random streams of a run: one seed, and a tag for the use of each stream."""

import zlib
from collections.abc import Mapping
from typing import Literal

import jax

from l2o.task import Key

Purpose = Literal["meta_training", "evaluation", "diagnosis", "validation"]

TAGS: Mapping[Purpose, int] = {
    "meta_training": 1,
    "evaluation": 2,
    "diagnosis": 3,
    "validation": 4,
}
"""Numbers folded into the seed; distinct, so that nothing evaluated on was meta-trained on."""


def stream(seed: int, purpose: Purpose) -> Key:
    """Derive the random key for one part of a run.

    >>> bool(stream(0, "evaluation") == stream(0, "meta_training"))
    False

    Args:
        seed: Seed of the whole run.
        purpose: Part of the run.

    Raises:
        ValueError: If the seed is not one of the 2³² that JAX tells apart, or `purpose` is no part.
    """
    check_seed(seed)
    if purpose not in TAGS:
        raise ValueError(
            f"`purpose` must be one of {', '.join(TAGS)}; got {purpose!r}. Try meta_training."
        )
    return jax.random.fold_in(jax.random.key(seed), TAGS[purpose])


def key_of(key: Key, name: str) -> Key:
    """Derive the key of what has this name, whatever else there is."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def check_seed(seed: int) -> None:
    """Raise a `ValueError` unless a seed is one of the 2³² that JAX tells apart."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be between 0 and 2**32 - 1; got {seed}. Try seed=0.")
