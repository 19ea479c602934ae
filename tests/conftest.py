"""Settings of the whole suite: two CPU devices, quick compilation, and no windows for plots."""

import os
from collections.abc import Iterator

os.environ["MPLBACKEND"] = "Agg"
# The suite compiles hundreds of small programs and runs each for milliseconds.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.devices()  # from here on the number is fixed, whatever a command line asks for


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def strict_ranks() -> Iterator[None]:
    """Broadcasts between ranks are errors, unless written out; for code without biases."""
    with jax.numpy_rank_promotion("raise"):
        yield
