"""Settings of the whole suite: two CPU devices, quick compilation, and no windows for plots."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version

os.environ["MPLBACKEND"] = "Agg"
# The suite compiles hundreds of small programs and runs each for milliseconds. XLA ends the
# interpreter at a flag that it does not know.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else "")
)

import jax
import pytest

# What is compiled stays, and a collector that walks it all every 700 objects costs some percent.
gc.set_threshold(100_000, 20, 20)

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
