"""What a run compiles, how, and that the next one finds it."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from estimator_table import EVERY, make

from l2o.objective import Objective, as_cost
from l2o.problem import inner_problem
from l2o.registry import DESIGNS
from l2o.runs.compilation import ON_CPUS, cut_to, long_running, use_compilation_cache
from l2o.tasks.quadratic import rotated_quadratic

SCRIPT = """
import collections, sys
import jax.monitoring
from l2o.cli.main import run

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


def test_the_cache_lies_beside_the_data_unless_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.delenv("L2O_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "elsewhere"))
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "l2o" / "xla")
        assert (tmp_path / "l2o" / "xla").is_dir()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_a_run_that_is_continued_or_repeated_compiles_nothing_anew(tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    kept = lambda: {path.name for path in (cache / "l2o" / "xla").glob("jit_chunk-*-cache")}
    alike = cached_run(cache, "--run-dir", str(run))  # within a run; a slow machine keeps more
    first = kept()
    assert len(first) == 1
    shutil.rmtree(run / "checkpoints" / "20")  # as if it had been stopped at step 10
    assert cached_run(cache, "--run-dir", str(run), "--resume") > alike
    assert cached_run(cache, "--run-dir", str(tmp_path / "again")) > alike
    assert kept() == first


STRANGE = np.array([np.nan, np.inf, -np.inf, -0.0, 1e30, 1.0], np.float32)
TASK = rotated_quadratic(dim=2)


@pytest.mark.parametrize(
    "check",
    [
        jnp.isnan,
        jnp.isfinite,
        lambda x: jnp.where(jnp.isfinite(x), x, 7.0),
        lambda x: as_cost(Objective(), TASK, x),
        lambda x: jnp.all(jnp.isfinite(x.reshape(2, 3)), axis=1),
        jnp.nanmax,
        jnp.max,
        jax.nn.relu,
    ],
)
def test_what_is_not_finite_is_seen_by_programs_that_run_for_long(check):
    found = jax.jit(check).lower(STRANGE).compile(long_running())(STRANGE)
    np.testing.assert_array_equal(found, check(STRANGE))


def test_flags_of_the_environment_go_before(monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("options are for CPUs")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert long_running() == dict(ON_CPUS)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false --xla_dump_to=x")
    assert long_running().keys() == ON_CPUS.keys() - {"xla_cpu_enable_fast_math"}


QUICK = {"pes", "full_grad"}, {"adafac_mlp", "scheduler"}
"""An estimator of each kind, which meets every design, and a design of each kind likewise."""


@pytest.mark.parametrize(
    ("estimator", "design"),
    [
        pytest.param(
            *pair, marks=() if pair[0] in QUICK[0] or pair[1] in QUICK[1] else pytest.mark.slow
        )
        for pair in itertools.product(EVERY, DESIGNS)
    ],
)
def test_every_estimator_meta_trains_every_design(estimator, design):
    """Traced, not run: backpropagation needs a rule for all that a design does."""
    lopt = DESIGNS[design]()
    theta = lopt.init(jax.random.key(0))
    problem = inner_problem(TASK, lopt, horizon=4, window=2)
    found = make(estimator, problem, num_pairs=3)
    state = jax.eval_shape(found.init, jax.random.key(1), theta)
    gradient, _, _ = jax.eval_shape(found.estimate, jax.random.key(2), theta, state, found.data)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, theta)


def test_the_cache_is_cut_to_what_was_written_last(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    cut_to(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    cut_to(tmp_path, 200)
    assert len(list(tmp_path.iterdir())) == 2
