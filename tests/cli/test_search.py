"""`l2o search`: workers that are killed, what is found, and mistakes."""

import errno
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from l2o import release
from l2o.cli import meta_train as meta_training
from l2o.cli import search_worker
from l2o.cli.main import main
from l2o.cli.meta_train import parse_settings
from l2o.cli.recorded import recorded_settings
from l2o.distributed import processes
from l2o.runs import checkpoint
from l2o.runs.folder import RunError, RunFolder
from l2o.runs.logging import TIMING_FIELDS, read_metrics
from l2o.search.helpers import PARENT
from l2o.search.study import read_trials

TESTS = Path(__file__).parents[1]

RUN = (
    "smoke --task user_module:bowl --optimizer learnable_sgd --validate-on user_module:two_bowls "
    "--validate-seeds 2 --horizon 8 --window 2 --num-pairs 2 --steps 40 --log-every 4 "
    "--checkpoint-every 8 --devices 1"
)
SEARCH = f"{RUN} --over learning_rate=0.003:0.3 std=0.01:0.3 --eta 2 --rungs 2"
COST = 40 * 2 * 2 * 2
"""Inner steps of a whole run."""


def start(out: Path, budget: int, words: str = SEARCH) -> subprocess.Popen:
    line = f"{sys.executable} -m l2o search {words} --budget {budget} --out {out}"
    env = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    return subprocess.Popen(line.split(), env=env, text=True, stdout=pipe, stderr=pipe)


def search(out: Path, budget: int) -> int:
    return main(["search", *SEARCH.split(), "--budget", str(budget), "--out", str(out)])


def untimed(path: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in TIMING_FIELDS} for r in read_metrics(path)]


def check_ledger(out: Path, budget: int) -> None:
    """No trial is lost, none was trained twice, and inner steps are those that were given out."""
    found = json.loads((out / "search.json").read_text())
    numbers = [trial["number"] for trial in found["trials"]]
    assert numbers == list(range(len(numbers)))
    assert sorted(p.name for p in (out / "trials").iterdir() if p.is_dir()) == [
        f"{number:03}" for number in numbers
    ]
    used = 0
    for trial in found["trials"]:
        run = RunFolder(out / trial["run_dir"])
        lines = read_metrics(run.metrics)
        assert [line["step"] for line in lines] == list(range(4, trial["target"] + 1, 4))
        assert max(map(int, trial["scores"])) == trial["target"] and not trial["error"]
        rows = {row["step"]: row["score"] for row in read_metrics(run.validation)}
        assert {int(step): score for step, score in trial["scores"].items()}.items() <= rows.items()
        assert run.theta.exists() == (trial["target"] == 40)
        used += lines[-1]["inner_steps"]
    assert used == found["inner_steps"] <= budget
    assert max(trial["target"] for trial in found["trials"]) == 40


def kill_and_check(out: Path, *, budget: int, num_kills: int, seed: int) -> None:
    """Two workers search; one of them is killed at random moments and started again."""
    draw = random.Random(seed)
    steady, kills = start(out, budget), 0
    while kills < num_kills:
        child = start(out, budget)
        if kills % 2:  # anywhere, while Python starts, too
            time.sleep(draw.uniform(0.0, 6.0))
        else:  # right after it has written down a score
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(draw.uniform(0.0, 1.0))
        child.kill()
        child.communicate(timeout=60)
        kills += 1
    _, errors = steady.communicate(timeout=600)
    assert steady.returncode == 0, errors
    check_ledger(out, budget)


def test_a_worker_is_killed_and_no_trial_is_lost(tmp_path):
    kill_and_check(tmp_path / "out", budget=2 * COST, num_kills=2, seed=0)


@pytest.mark.slow
def test_ten_kills(tmp_path):
    kill_and_check(tmp_path / "out", budget=20 * COST, num_kills=10, seed=1)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("searched") / "out"
    assert search(out, 2 * COST) == 0
    return out


@pytest.mark.slow
def test_two_workers_of_one_command(tmp_path):
    """SIGTERM to the command stops both; typed again, both go on to the end."""
    out, budget = tmp_path / "out", 12 * COST
    line = f"{SEARCH} --workers 2"
    first = start(out, budget, line)
    while not list(out.glob("trials/*/metrics.jsonl")):
        time.sleep(0.2)
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 130
    again = start(out, budget, line)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    check_ledger(out, budget)


def test_what_was_found(searched, capsys):
    found = json.loads((searched / "search.json").read_text())
    check_ledger(searched, 2 * COST)
    assert found["rungs"] == [20, 40]
    # The first trial is what would be run without a search.
    assert found["trials"][0]["values"] == {"learning_rate": 0.03, "std": 0.01}
    page = (searched / "report.html").read_text()
    assert page.count("<svg") == 1 and found["trials"][found["best"]]["command"] in page
    # Typed again, it has nothing to do and says the same.
    before = sorted(p.stat().st_mtime_ns for p in searched.glob("trials/*/*"))
    assert search(searched, 2 * COST) == 0
    assert sorted(p.stat().st_mtime_ns for p in searched.glob("trials/*/*")) == before
    assert "(best)" in capsys.readouterr().out


def test_a_trial_is_the_run_that_its_command_makes(searched, tmp_path):
    """Rungs and all: the same theta, and the same lines of metrics."""
    found = json.loads((searched / "search.json").read_text())
    best = found["trials"][found["best"]]
    words = shlex.split(best["command"])
    assert words[:2] == ["l2o", "meta-train"]
    assert main([*words[1:], "--no-evaluate", "--run-dir", str(tmp_path / "again"), "--quiet"]) == 0
    run, again = RunFolder(searched / best["run_dir"]), RunFolder(tmp_path / "again")
    assert untimed(run.metrics) == untimed(again.metrics)
    jax.tree.map(
        np.testing.assert_array_equal, release.load(run.path)[1], release.load(again.path)[1]
    )
    parsed = parse_settings(words[2:])
    trial = recorded_settings(["--resume", "--run-dir", str(run.path)])
    assert parsed.recorded() == trial.recorded()


def test_a_larger_budget_goes_on(searched, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(searched, out)
    before = json.loads((out / "search.json").read_text())
    assert search(out, 3 * COST) == 0
    check_ledger(out, 3 * COST)
    after = json.loads((out / "search.json").read_text())
    assert after["inner_steps"] > before["inner_steps"]


def broken(monkeypatch, is_broken, error):
    """Trials that are `is_broken` end in an error; the others score their number at once."""
    calls = []

    def train(study, claim, settings):
        calls.append(claim.trial.number)
        if is_broken(claim.trial.number):
            raise error
        study.finish(claim, claim.trial.number / 100)
        return True

    monkeypatch.setattr(search_worker, "train", train)
    return calls


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "MemoryError: "),
        (RunError("its checkpoint is damaged"), "its checkpoint is damaged"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nand more"), "JaxRuntimeError: RESOURCE_EX"),
    ],
)
def test_a_faulty_trial_fails_alone(error, message, tmp_path, monkeypatch):
    calls = broken(monkeypatch, lambda number: number == 1, error)
    assert search(tmp_path / "out", 3 * COST) == 0
    trials = json.loads((tmp_path / "out" / "search.json").read_text())["trials"]
    assert [bool(trial["error"]) for trial in trials[:3]] == [False, True, False]
    assert message in trials[1]["error"] and "\n" not in trials[1]["error"]
    assert calls.count(1) == 1 and max(trial["target"] for trial in trials) == 40


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunError("no device"), "no device"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED\nand more"), "JaxRuntimeError: RESOURCE_EXHAUSTED"),
    ],
)
def test_a_broken_machine_ends_a_worker(error, message, tmp_path, monkeypatch, capsys):
    calls = broken(monkeypatch, lambda number: True, error)
    assert search(tmp_path / "out", 3 * COST) == 2
    assert calls == [0, 1] and capsys.readouterr().err == f"error: {message}\n"
    trials = read_trials(tmp_path / "out")
    assert [trial.error for trial in trials] == [message, ""]
    broken(monkeypatch, lambda number: False, None)  # repaired, it goes on with the second
    assert search(tmp_path / "out", 3 * COST) == 0
    assert all(trial.scores for trial in read_trials(tmp_path / "out")[1:])


def with_full_disk(patch, num_saves):
    """Let there be room for so many checkpoints."""
    reserve, saved = checkpoint._reserve, []

    def limited(path, num_bytes):
        saved.append(path)
        if len(saved) > num_saves:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(path, num_bytes)

    patch.setattr(checkpoint, "_reserve", limited)


def test_a_full_disk_fails_no_trial(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        with_full_disk(patch, num_saves=5)
        for _ in range(2):  # nor does it when the same is typed again
            assert search(tmp_path / "out", 2 * COST) == 2
            error = capsys.readouterr().err
            assert "No space left" in error and "Free space, then type the same again." in error
    assert [trial.error for trial in read_trials(tmp_path / "out")] == ["", ""]
    assert search(tmp_path / "out", 2 * COST) == 0
    check_ledger(tmp_path / "out", 2 * COST)


def test_a_trial_whose_files_are_damaged_fails_alone(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        with_full_disk(patch, num_saves=2)
        assert search(tmp_path / "out", 2 * COST) == 2
    (tmp_path / "out" / "trials" / "000" / "config.json").write_bytes(bytes(3))
    assert search(tmp_path / "out", 2 * COST) == 0
    first, *others = read_trials(tmp_path / "out")
    assert "config.json" in first.error and not any(trial.error for trial in others)
    assert max(trial.target for trial in others) == 40


@pytest.mark.parametrize("rung", [20, 40])
def test_a_signal_in_the_last_steps_of_a_trial_is_heard(rung, tmp_path, monkeypatch):
    fit = meta_training.fit

    def interrupted(*arguments, until, **options):
        state = fit(*arguments, until=until, **options)
        if until == rung:
            signal.raise_signal(signal.SIGTERM)
        return state

    monkeypatch.setattr(meta_training, "fit", interrupted)
    assert search(tmp_path / "out", 2 * COST) == 130
    assert sum(trial.is_busy for trial in read_trials(tmp_path / "out")) == 1
    monkeypatch.undo()
    assert search(tmp_path / "out", 2 * COST) == 0
    check_ledger(tmp_path / "out", 2 * COST)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_cores(workers, searched, monkeypatch):
    """Each has as many devices as its share allows and the pairs of a trial can be spread over."""
    shares = []
    monkeypatch.setattr(processes, "use_cpu_cores", shares.append)
    monkeypatch.setattr(processes, "cores", lambda: list(range(12)))
    monkeypatch.setenv(PARENT, str(os.getppid()))  # a helper, which starts none of its own
    words = [word for word in SEARCH.split() if word not in ("--devices", "1")]
    line = ["search", *words, "--workers", str(workers), "--budget", str(2 * COST)]
    assert main([*line, "--out", str(searched)]) == 0
    assert shares == [12 // workers]


def test_a_worker_that_fails_is_told(searched, tmp_path, monkeypatch, capsys):
    shutil.copytree(searched, tmp_path / "out")
    broken(monkeypatch, lambda number: time.sleep(0.2), None)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    line = f"search {SEARCH} --workers 3 --budget {4 * COST} --out {tmp_path / 'out'}"
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    for worker in (2, 3):
        assert said.count(f"worker {worker} ended with status 1; others go on without it") == 1


def test_helpers_whose_parent_has_ended_stop(searched, tmp_path, monkeypatch, capsys):
    shutil.copytree(searched, tmp_path / "out")
    calls = broken(monkeypatch, lambda number: False, None)
    monkeypatch.setenv(PARENT, "1" if os.getppid() != 1 else "2")
    assert search(tmp_path / "out", 4 * COST) == 130 and not calls
    assert "stopped" in capsys.readouterr().out
    monkeypatch.setenv(PARENT, str(os.getppid()))
    assert search(tmp_path / "out", 4 * COST) == 0 and calls


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "`over` must name settings; got none"),
        ("--over nothing", "`over` must be a known name; got nothing"),
        ("--over std=1:0.1", "`over` std must be a range from a lower to a higher number"),
        ("--over std=-1:0.1", "`std` must"),
        ("--over steps=10:20", "`over` cannot hold steps, which rungs are parts of"),
        ("--over seed=0,1", "`over` cannot hold seed, which all trials share"),
        ("--over std", "`budget` must be at least that of one whole run, 320 inner steps; got 0"),
        ("--over std --budget 319", "`budget` must be at least that of one whole run"),
        ("--over std --budget -5", "`budget` must be positive and finite; got -5"),
        ("--over std --budget nan", "`budget` must be positive and finite; got nan"),
        ("--over std --budget inf", "`budget` must be positive and finite; got inf"),
        ("--over std --budget 1e4 --workers 0", "`workers` must be at least 1"),
        ("--over std --budget 1e4 --eta 1", "`eta` must be at least 2"),
        ("--over std --budget 1e4 --rungs 0", "`rungs` must be at least 1"),
        ("--over std --run-dir runs/x", "`--run-dir` is for l2o meta-train"),
        ("--over std --resume", "`--resume` is for l2o meta-train"),
        ("--over std --distributed", "`distributed` is for l2o meta-train"),
        ("--over std --devices 99", "`devices` must be between 1 and"),
        (f"--over std --budget 1e4 --out {TESTS}", "`out` must be a new folder or that of a"),
        (f"--over std --budget 1e4 --out {__file__}", "`out` must be a folder that can be written"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["search", *RUN.split(), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_the_folder_of_another_search(searched, capsys):
    line = f"search {SEARCH} --budget 1e4 --out {searched} --ema-decay 0.9"
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert "`out` must not belong to another search" in error and error.count("\n") == 1
    assert "settings.ema_decay=0.98 (now 0.9)" in error


def test_families_to_judge_by_are_needed(capsys):
    assert main("search smoke --over std --budget 1e6".split()) == 2
    assert "`validate_on` must name held-out families" in capsys.readouterr().err
