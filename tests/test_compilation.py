"""What a run compiles, the next one finds."""

import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import collections, sys
import jax.monitoring
from l2o.cli import run

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
try:
    run(sys.argv[1:])
finally:
    print("hits", events["/jax/compilation_cache/cache_hits"])
"""


def cached_run(cache: Path, *arguments: str) -> int:
    """Runs a command line with its cache in a folder; how often that had what was asked for."""
    environment = {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "meta-train", "smoke", "--no-evaluate", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    return int(done.stdout.split("hits ")[-1])


def test_a_run_that_is_continued_or_repeated_compiles_nothing_anew(tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    kept = lambda: {path.name for path in (cache / "l2o" / "xla").glob("jit_chunk-*-cache")}
    assert cached_run(cache, "--run-dir", str(run)) == 0
    first = kept()
    assert len(first) == 1
    shutil.rmtree(run / "checkpoints" / "20")  # as if it had been stopped at step 10
    assert cached_run(cache, "--run-dir", str(run), "--resume") >= 1
    assert cached_run(cache, "--run-dir", str(tmp_path / "again")) >= 1
    assert kept() == first
