"""Kills a meta-training at random moments and continues it: it must end in the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l2o.runs.checkpoint import Checkpoints
from l2o.runs.folder import RunFolder
from l2o.runs.logging import TIMING_FIELDS, read_metrics

SCRIPT = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the child, with a compilation cache that later children share."""
    cache = tmp_path_factory.mktemp("cache")
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_PLATFORMS": "cpu",
    }

    def start(folder: Path, num_steps: int, learner: str) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPT), str(folder), str(num_steps), learner]
        if RunFolder(folder).config.exists():
            command.append("--resume")
        return subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


def finish(child: subprocess.Popen) -> None:
    _, errors = child.communicate(timeout=240)
    assert child.returncode == 0, errors


def untimed(path: Path) -> list[dict]:
    lines = read_metrics(path)
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]


def kill_and_compare(
    start, tmp_path: Path, learner: str, *, num_kills: int, num_steps: int, seed: int
) -> None:
    rng = random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, num_steps, learner))

    kills = 0
    for attempt in range(4 * num_kills):
        child = start(killed, num_steps, learner)
        if attempt % 5 == 4:  # anywhere, while Python starts too
            time.sleep(rng.uniform(0.0, 3.0))
        else:  # while it trains, which is mostly saving checkpoints
            child.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.25))
        child.kill()
        child.communicate(timeout=60)
        kills += child.returncode == -signal.SIGKILL
        if kills == num_kills or RunFolder(killed).theta.exists():
            break
    assert kills == num_kills
    finish(start(killed, num_steps, learner))

    ours, theirs = RunFolder(killed), RunFolder(whole)
    assert ours.theta.read_bytes() == theirs.theta.read_bytes()
    assert ours.best.read_bytes() == theirs.best.read_bytes()
    assert ours.validated.read_bytes() == theirs.validated.read_bytes()
    for path, every in (("metrics", 5), ("validation", 20)):
        lines = untimed(getattr(ours, path))
        assert lines == untimed(getattr(theirs, path))
        assert [line["step"] for line in lines] == list(range(every, num_steps + 1, every))
    for folder in (whole, killed):
        assert Checkpoints(RunFolder(folder).checkpoints).steps() == [
            num_steps - 10,
            num_steps,
        ]
        assert not [p for p in folder.rglob("*") if "tmp" in p.name]


def test_one_kill(start, tmp_path):
    kill_and_compare(start, tmp_path, "pes", num_kills=1, num_steps=200, seed=0)


@pytest.mark.slow
def test_twenty_five_kills(start, tmp_path):
    kill_and_compare(start, tmp_path, "pes", num_kills=25, num_steps=2500, seed=1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signals_stop_with_a_checkpoint(start, tmp_path, number):
    folder = tmp_path / "run"
    child = start(folder, 100_000, "pes")
    child.stdout.readline()
    child.send_signal(number)
    finish(child)
    last = read_metrics(RunFolder(folder).metrics)[-1]["step"]
    assert last < 100_000
    assert Checkpoints(RunFolder(folder).checkpoints).steps()[-1] == last
    assert not RunFolder(folder).theta.exists()


@pytest.mark.slow
def test_ten_kills_of_ppo(start, tmp_path):
    kill_and_compare(start, tmp_path, "ppo", num_kills=10, num_steps=1000, seed=2)
