"""What `--resume` knows of a run, what may change, and what a run that failed leaves."""

import contextlib
import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

import l2o
from l2o import release
from l2o.cli import main as cli
from l2o.cli import meta_train
from l2o.cli.meta_train import parse_settings
from l2o.cli.methods.table import METHODS
from l2o.cli.presets import PRESETS
from l2o.runs.folder import RunFolder
from l2o.runs.logging import read_metrics

OTHERS = (
    "scheduler --validate-on digits_mlp --seed 4 ppo --reward.names log_loss accuracy "
    "--reward.weights 1 2",
    "digits --freeze layers/* --weights 2 --eval.tasks digits_mlp_32 pes --final-std .001",
    "nres --task quadratic parabola --weights 1 2 --horizon 40 80 --std 0.2 --summary mean",
)
NEW = "meta-train --task user_module:bowl --horizon 8 --window 2 --no-evaluate --run-dir run"
AGAIN = "meta-train --resume --no-evaluate --run-dir run"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [*PRESETS, *METHODS, *OTHERS])
def test_resume_needs_no_option_of_the_run(words, tmp_path):
    settings = parse_settings(words.split())
    (tmp_path / "config.json").write_text(json.dumps(settings.recorded()))
    again = parse_settings(["--resume", "--run-dir", str(tmp_path)])
    assert dataclasses.replace(again, output=settings.output) == settings
    longer = parse_settings([f"--run_dir={tmp_path}", "--resume", "--steps", "100000"])
    assert longer.recorded() == settings.recorded() | {"steps": 100_000}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tasks": ["digits_mlp"]}, "whose config.json has tasks. Continue it with the version in"),
        ({"method": {"name": "pess"}}, "whose config.json has the method pess. Continue it with"),
    ],
)
def test_a_run_of_another_version_is_told(changed, says, tmp_path, capsys):
    config = parse_settings(["smoke"]).recorded() | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["meta-train", "--resume", "--run-dir", "."]) == 2
    assert says in capsys.readouterr().err


def test_a_run_is_made_longer_with_a_design_of_ones_own(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    design = "--optimizer user_module:rate_of rates=2 --steps 4".split()
    assert cli.main([*NEW.split(), *design]) == 0
    for wrong in ("--steps 3", "--steps 6 --seed 1", "--std 1"):
        assert cli.main([*AGAIN.split(), *wrong.split()]) == 2
    assert run.recorded()["steps"] == 4
    capsys.readouterr()
    for steps in ("6", "8"):
        assert cli.main([*AGAIN.split(), "--steps", steps]) == 0
    assert "going on to 6 steps from 4" in capsys.readouterr().out
    assert read_metrics(run.metrics)[-1]["step"] == 8
    assert run.recorded()["earlier_steps"] == [4, 6]
    assert release.summary("run")["earlier_steps"] == [4, 6]
    assert cli.main(AGAIN.split()) == 0  # of which nothing is left

    lopt, _ = l2o.load("run")
    assert (lopt.name, lopt.config) == ("rate_of", {"rates": 2})
    assert l2o.load("run/best.safetensors")[0].name == "rate_of"
    evaluate = "evaluate run --horizon 4 --seeds 8 --trials 0 --baselines sgdm --out evaluation"
    assert cli.main(evaluate.split()) == 0
    run.theta.rename("alone.safetensors")
    with pytest.raises(ValueError, match="pass its constructor"):
        l2o.load("alone.safetensors")


def test_a_signal_in_the_last_chunk_stops_ahead_of_the_evaluation(tmp_path, capsys, monkeypatch):
    @contextlib.contextmanager
    def interrupting(*_, **__):
        yield lambda line: signal.raise_signal(signal.SIGTERM) if line["step"] == 4 else None

    words = NEW.replace("--no-evaluate ", "").split()
    small = "--eval.seeds 8 --eval.baselines sgdm --steps 4 --optimizer learnable_sgd".split()
    with monkeypatch.context() as patch:
        patch.setattr(meta_train, "progress", interrupting)
        assert cli.main([*words, *small]) == 130
    assert "stopped before the evaluation; continue with --resume" in capsys.readouterr().out
    run = RunFolder(tmp_path / "run")
    assert run.theta.exists() and not run.report_json.exists()
    assert cli.main("meta-train --resume --run-dir run".split()) == 0
    assert run.report_json.exists()
    capsys.readouterr()
    assert cli.main([*AGAIN.split(), "--steps", "6"]) == 0
    assert "the report is of an earlier theta; try l2o evaluate " in capsys.readouterr().out


@pytest.mark.parametrize("is_there", [False, True])
def test_a_run_that_a_mistake_ends_before_its_first_step_is_removed(
    tmp_path, capsys, monkeypatch, is_there
):
    def fails(*_, **__):
        raise ValueError("`std` must be smaller.")

    if is_there:
        (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(meta_train, "fit", fails)
        assert cli.main([*NEW.split(), "--steps", "4"]) == 2
    assert capsys.readouterr().err.endswith("`std` must be smaller.\n")
    assert [p.name for p in tmp_path.rglob("*")] == ["run"] * is_there


def test_a_run_that_is_interrupted_before_its_first_step_stays(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(meta_train, "fit", interrupted)
        assert cli.main([*NEW.split(), "--steps", "4"]) == 130
    assert cli.main(AGAIN.split()) == 0
    assert RunFolder(tmp_path / "run").theta.exists()


def test_a_run_that_was_made_longer_is_validated_as_often(tmp_path):
    """Its checkpoints are at multiples of nine at first, then of ten."""
    validated = "--checkpoint-every 10 --validate-on quadratic --validate-seeds 8 --steps 27"
    assert cli.main([*NEW.split(), "--optimizer", "learnable_sgd", *validated.split()]) == 0
    assert cli.main([*AGAIN.split(), "--steps", "120"]) == 0
    steps = [line["step"] for line in read_metrics(RunFolder(tmp_path / "run").validation)]
    assert max(np.diff(steps)) <= 18 and len(steps) >= 12, steps


def test_two_that_make_a_run_longer(tmp_path):
    """The second has read the configuration before the first has written it."""
    run = RunFolder.open(tmp_path / "run", {"steps": 10})
    run.make_longer({"steps": 30})
    with pytest.raises(ValueError, match=r"`steps` must be at least 30, .* got 20\. Try steps=30"):
        run.make_longer({"steps": 20})


@pytest.mark.parametrize("content", ["{bad", '{"optimizer": 5}', '{"optimizer": [5]}', "[]"])
def test_a_release_file_beside_a_foreign_configuration(tmp_path, content):
    lopt = l2o.learnable_sgd()
    other = dataclasses.replace(lopt, name="mine")
    l2o.save("mine.safetensors", other, lopt.init(jax.random.key(0)))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="pass its constructor"):
        l2o.load("mine.safetensors")
