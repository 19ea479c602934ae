"""`l2o tune-baselines`, and comparisons that use what it kept."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from l2o.cli import main as cli
from l2o.cli import tune_baselines
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.training import Trainer

TUNE = (
    *("tune-baselines", "--task", "user_module:bowl", "--horizon", "5", "--seeds", "8"),
    *("--trials", "4", "--baselines", "sgdm", "dog"),
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def files(folder="runs/tuning"):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*.json")}


def test_what_was_tuned_is_shown_kept_and_used(capsys, monkeypatch):
    assert cli.main(TUNE) == 0
    out = capsys.readouterr().out
    assert "1/2 bowl, 5 steps: sgdm" in out and "2/2 bowl, 5 steps: dog" in out
    assert "(untuned)" in out and "momentum" in out
    first = files()
    assert first.keys() == {
        f"{name}{part}.json" for name in ("sgdm", "dog") for part in ("", "_finalists")
    }
    tried = json.loads(first["sgdm.json"])["trials"]
    assert len(tried) >= 15 + 4

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trains again"))
        assert cli.main(TUNE) == 0
    assert files() == first
    evaluate = ["evaluate", "digits", "--task", "user_module:bowl", "--horizon", "5"]
    options = ["--seeds", "8", "--trials", "4", "--baselines", "sgdm", "dog"]
    assert cli.main([*evaluate, *options, "--cache", "runs/tuning"]) == 0
    (row,) = json.loads(Path("runs/evaluation/report.json").read_text())["comparisons"]
    assert row["baselines"][0]["trials"] == len(tried)
    assert row["baselines"][0]["hyperparameters"] in [trial["config"] for trial in tried]
    assert files() == first


def test_how_far_a_search_is_shows_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    words = ["--task", "user_module:bowl", "--horizon", "5", "--seeds", "8", "--trials", "0"]

    def shown(**options):
        file = io.StringIO()
        console = Console(file=file, width=200, **options)
        assert tune_baselines.command([*words, "--baselines", "sgdm"], console) == 0
        return file.getvalue()

    live, piped = shown(force_terminal=True), shown()
    assert "compiling" in live
    medians = [
        float(x) for x in re.findall(r"sgdm: 8 settings, best (\S+) \(bowl, 5 steps\)", live)
    ]
    assert len(set(medians)) == 1 and medians[0] > 0.0
    assert len(set(re.findall(r"sgdm: (\d+) settings, best", live))) >= 4
    line = r"1/1 bowl, 5 steps: sgdm \S+ in \d+ settings, \d+ s\n"
    assert re.search(line, live.replace("\r", ""))
    assert re.match(line + " +Final training loss on tuning seeds", piped)
    assert "best" not in piped and "compiling" not in piped


def test_all_are_all_baselines(monkeypatch):
    names = []
    monkeypatch.setattr(
        tune_baselines,
        "run_all",
        lambda jobs, *rest: [names.append(job.baseline) for job in jobs][:0],
    )
    assert cli.main([*TUNE[:-3], "--baselines", "all"]) == 0
    assert names == list(BASELINES)


@pytest.mark.slow
def test_several_processes_find_the_same(capsys):
    assert cli.main(TUNE) == 0
    assert cli.main([*TUNE, "--processes", "2", "--cache", "other"]) == 0
    assert files() == files("other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "4"), "`seeds` must be at least 8, as fewer give no interval; got 4."),
        (("--trials", "-1"), "`trials` must be at least 0; got -1. Try trials=16."),
        (("--baselines", "amad"), "`baselines` must be among adam,"),
        (
            ("--baselines", "all", "all"),
            "`baselines` must be all, or names; got all all. Try baselines=all.",
        ),
        (("--horizon", "0"), "`horizon` must be positive and finite; got 0."),
        (
            ("--task",),
            "`task` must be different ones, at least one; got none. Try task=digits_mlp.",
        ),
        (
            ("--horizon", "5", "5"),
            "`horizon` must be different ones, at least one; got 5 5. Try horizon=1000.",
        ),
        (("--processes", "0"), "`processes` must be positive and finite; got 0."),
        (("--task", "digts"), "`task` must be a known name; got digts."),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    assert cli.main(["tune-baselines", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
