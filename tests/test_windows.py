"""What can be told of Windows on another system: that nothing needs what only Unix has."""

import os
import subprocess
import sys

IMPORT_ALL = """
import importlib, os, pkgutil, select, signal, sys
import jax, numpy, optax, orbax.checkpoint, rich, tyro  # whatever these need is theirs
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for module, names in {
    os: "fork getuid getpgid killpg posix_fallocate sched_getaffinity uname",
    select: "poll",
    signal: "SIGALRM SIGHUP SIGKILL SIGPIPE SIGUSR1 setitimer",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
import l2o
for module in pkgutil.walk_packages(l2o.__path__, "l2o."):
    if module.name != "l2o.__main__":
        importlib.import_module(module.name)
from l2o.cli.main import main
sys.exit(main(["list"]))
"""


def test_everything_is_imported_without_what_only_unix_has():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nominal_mlp" in done.stdout
