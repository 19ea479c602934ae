"""Compilation: XLA's options, and the cache of compiled programs on disk.

The cache is JAX's own, switched on by the command line: a second run with the same shapes, and one
that is continued, compile nothing anew. It lies beside the data sets, in `xla`, and is cut to
`LARGEST_CACHE` when a command begins; delete it at any time. `JAX_COMPILATION_CACHE_DIR` puts it
elsewhere, `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax

from l2o.datasets.fetch import own_cache_folder

SECONDS_WORTH_KEEPING = 0.02
"""Compile time below which a program is not kept."""

LARGEST_CACHE = 2 * 2**30
"""Bytes of the cache on disk. JAX's own bound reads all entries whenever it writes one."""


ON_CPUS: Mapping[str, str | bool] = {
    "xla_backend_optimization_level": "1",
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
}
"""XLA's options on CPUs for programs that run for long: compiled in less time, with vectors as
wide as there are and with sums in any order, so that it can vectorise the statistics of a tensor.
NaN and infinity are told from numbers as ever, but algebra is that of real numbers: 0 x, x - x and
(x + y) - x are 0, 0 and y even for an x that is not finite or so large that y is lost in it."""


def long_running() -> dict[str, str | bool]:
    """Choose XLA's options for a program that is compiled once and runs for long.

    Those that the environment's `XLA_FLAGS` names are left to it, so that
    `XLA_FLAGS=--xla_cpu_enable_fast_math=false` gives the algebra of floating-point numbers.
    """
    if jax.default_backend() != "cpu":
        return {}
    named = re.findall(r"--(\w+)", os.environ.get("XLA_FLAGS", ""))
    return {name: value for name, value in ON_CPUS.items() if name not in named}


def cut_to(folder: Path, most: int) -> None:
    """Remove the oldest files of a folder beyond a number of bytes; others may do so as well."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            files.append((path.stat(), path))
    size = 0
    for stat, path in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
        size += stat.st_size
        if size > most:
            with contextlib.suppress(OSError):
                path.unlink()


def use_compilation_cache() -> None:
    """Keep what this process compiles, unless the environment names a folder.

    Where the folder cannot be written nothing is kept, nor where a user has no folder: programs
    among the temporary files may be somebody else's.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    with contextlib.suppress(OSError, ValueError):
        cache = own_cache_folder()
        if cache is None:
            return
        folder = cache / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        smallest = {
            "jax_persistent_cache_min_compile_time_secs": SECONDS_WORTH_KEEPING,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in smallest.items():
            if name.upper() not in os.environ:
                jax.config.update(name, value)
        cut_to(folder, LARGEST_CACHE)
