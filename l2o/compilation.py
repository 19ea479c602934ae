"""What XLA has compiled once, kept on disk for later processes.

JAX's own persistent cache, switched on by the command line: a second run with the same shapes, and
one that is continued, compile nothing anew. It lies beside the data sets, in `xla`; delete it at
any time. `JAX_COMPILATION_CACHE_DIR` puts it elsewhere, `JAX_ENABLE_COMPILATION_CACHE=false`
switches it off.
"""

import contextlib
import os

import jax

from l2o.data import cache_folder

SECONDS_WORTH_KEEPING = 0.2
"""Programs that compile faster are not kept."""


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
