"""How XLA compiles, and what it has compiled once, kept on disk for later processes.

The cache is JAX's own, switched on by the command line: a second run with the same shapes, and
one that is continued, compile nothing anew. It lies beside the data sets, in `xla`; delete it at
any time. `JAX_COMPILATION_CACHE_DIR` puts it elsewhere, `JAX_ENABLE_COMPILATION_CACHE=false`
switches it off.
"""

import contextlib
import os
from collections.abc import Mapping

import jax

from l2o.data import cache_folder

SECONDS_WORTH_KEEPING = 0.02
"""Programs that compile faster are not kept."""


ON_CPUS: Mapping[str, str | bool] = {
    "xla_backend_optimization_level": "1",
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
}
"""How XLA compiles for CPUs what runs for long: in less time, with vectors as wide as there are and
with sums in any order, which lets it vectorise the statistics of a tensor. What is not finite
stays so, except where it is multiplied by a literal zero or taken from itself."""


def long_running() -> dict[str, str | bool]:
    """XLA's options for a program that is compiled once and runs for long."""
    return dict(ON_CPUS) if jax.default_backend() == "cpu" else {}


def use_compilation_cache() -> None:
    """Keeps what this process compiles, unless the environment names a folder.

    Where the folder cannot be written nothing is kept.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_folder() / "xla"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
