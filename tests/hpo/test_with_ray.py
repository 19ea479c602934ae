"""Populations of Ray."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hpo_search import RUNS, STEPS, searched

from l2o.hpo.engines import ENGINES
from l2o.hpo.search import Search, incumbents
from l2o.runs.folder import RunError


@pytest.mark.slow
def test_a_population_of_ray_searches_within_its_budget(trainer, tmp_path):
    ray = pytest.importorskip("ray")
    search = searched("ray_pbt", trainer[0], 1, tmp_path)
    ray.shutdown()
    assert search.budget_used == search.budget
    last = incumbents(search.reports)[-1]
    assert last.step == STEPS
    # What a member did, history and all, is what its schedule says.
    np.testing.assert_allclose(
        search.trainer.advance(trainer[0].begin(), last.schedule, 0, STEPS)[1], last.loss, rtol=1e-3
    )
    copied = [r for r in search.reports if len(np.unique(r.schedule[:, 0])) > 1]
    assert copied  # some went on with other rates
    assert all(a.budget_used < b.budget_used for a, b in itertools.pairwise(search.reports))


@pytest.mark.slow
def test_a_member_of_ray_that_fails_is_told(trainer, tmp_path):
    ray = pytest.importorskip("ray")
    broken = dataclasses.replace(trainer[0], start=None)
    with pytest.raises(RunError, match=r"ray_pbt: \d+ of 16 members failed: "):
        ENGINES["ray_pbt"].search(Search(broken, RUNS * STEPS), 0, tmp_path)
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interrupt", "status", "message"),
    [
        (
            ["pkill", "-9", "-n", "-P", "raylet", "-f", "ray::Member"],
            2,
            "error: ray_pbt: 1 of 4 members failed",
        ),
        (["kill", "-INT", "parent"], 130, "interrupted"),
    ],
    ids=["a member dies", "Ctrl-C"],
)
def test_a_population_of_ray_that_is_interrupted_is_no_result(tmp_path, interrupt, status, message):
    pytest.importorskip("ray")
    script = f"""
import os, subprocess
from l2o.cli.main import run
from l2o.hpo.search import Search

record = Search.record

def interrupted(search, *report):
    record(search, *report)
    if len(search.reports) == 6:
        pid_of = lambda *words: subprocess.check_output(["pgrep", *words], text=True).split()[-1]
        me = str(os.getpid())
        words = [me if word == "parent" else word for word in {interrupt}]
        words = [pid_of("-P", me, "raylet") if word == "raylet" else word for word in words]
        subprocess.run(words, check=True)

Search.record = interrupted
run()
"""
    options = ["--task", "quadratic", "--horizon", "40", "--runs", "4", "--searches", "1"]
    what = ["--engines", "ray_pbt", "--seeds", "8", "--out", str(tmp_path), "--policies"]
    done = subprocess.run(
        [sys.executable, "-c", script, "compare-hpo", *options, *what],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr.splitlines()[-1][: len(message)]) == (status, message)
    assert not list(tmp_path.glob("**/*.npz")) and not (tmp_path / "hpo.json").exists()
