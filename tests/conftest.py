"""Settings of the whole suite: two CPU devices, quick compilation, and no windows for plots."""

import gc
import os
import tempfile
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
# A fifth of lowering a program is writing down where in Python each of its lines is from.
os.environ["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "false"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"

import jax
import pytest
from slow_cases import is_slow_case

# The tests of one run, its workers and the command lines that they start share what is compiled.
COMPILED = tempfile.TemporaryDirectory(prefix="l2o-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED.name)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])

# What is compiled stays, and a collector that walks it all every 700 objects costs some percent.
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 2)
jax.devices()  # from here on the number is fixed, whatever a command line asks for


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow_case(item.nodeid):
            item.add_marker(pytest.mark.slow)


def pytest_unconfigure() -> None:
    COMPILED.cleanup()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def strict_ranks() -> Iterator[None]:
    """Broadcasts between ranks are errors, unless written out; for code without biases."""
    with jax.numpy_rank_promotion("raise"):
        yield
