"""`l2o diagnose` from end to end."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from l2o import registry
from l2o.cli import main as cli
from l2o.diagnosis.report import png
from l2o.diagnosis.summary import (
    BUDGET,
    Diagnosis,
    Measurement,
    Reference,
)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


TINY = (
    *("diagnose", "--task", "user_module:bowl", "--optimizer", "learnable_sgd", "--std", "0.1"),
    *("--horizon", "4", "--window", "2", "--num-replicates", "8"),
)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    options = ("--estimator", "pes", "--reference", "smoothed", "--out", "d")
    assert cli.main([*TINY, *options]) == 0
    printed = capsys.readouterr().out
    assert "pes, horizon 4, window 2: 8 replicates" in printed
    assert "horizon 4, smoothed gradient of norm" in printed
    content = json.loads((tmp_path / "d/diagnosis.json").read_text())
    assert content["config"]["estimator"] == ["pes"] and content["config"]["task"] == "bowl"
    assert content["budget"] == BUDGET and content["seconds"] > 0
    assert content["environment"]["num_devices"] == jax.device_count()
    assert [row["estimator"] for row in content["measurements"]] == ["full_es", "pes"]
    fields = lambda row: {k: np.nan if v is None and k != "window" else v for k, v in row.items()}
    found = Diagnosis(
        tuple(Reference(**fields(row)) for row in content["references"]),
        tuple(Measurement(**fields(row)) for row in content["measurements"]),
    )
    assert [dataclasses.asdict(row) for row in found.measurements] == content["measurements"]
    assert [dataclasses.asdict(row) for row in found.references] == content["references"]
    assert (tmp_path / "d/diagnosis.png").read_bytes() == png(found, "learnable_sgd on bowl")


MISTAKES = {
    "estimator": ("--estimator nrse", "`estimator` must be a known name; got nrse. Try nres"),
    "task": ("--task digits_mlp_33", "`task` must be a known name; got digits_mlp_33. Try digits"),
    "window": ("--window 3", "multiple of `window`; got horizon=4, window=3. Try horizon=6"),
    "whole": ("--window 4", "`horizon` must be above `window`; got horizon=4, window=4"),
    "nothing": ("--horizon", "`horizon` must be at least one number; got none. Try horizon=50"),
    "std": ("--std 0", "`std` must be positive and finite; got 0.0"),
    "runs": (
        "--num-replicates 2",
        "`num_replicates` must be at least 8; got 2. Try num_replicates=256",
    ),
    "metric": (
        "--measure accuracy --summary mean --task digits_mlp --estimator truncated_grad",
        "`estimator` must be an evolution strategy",
    ),
    "whole metric": (
        "--measure accuracy --summary mean --task digits_mlp --estimator full_grad",
        "`estimator` must be an evolution strategy",
    ),
    "reference": (
        "--measure accuracy --summary mean --task digits_mlp --reference exact",
        "`reference` must be smoothed for a metric",
    ),
    "measure": ("--measure speed", "`measure` must be loss or a metric of task bowl"),
    "out": ("--out /dev/null/d", "`out` must be a folder that can be written to; got /dev/null/d"),
    "theta": ("--theta nowhere", "nowhere"),
    "seed": ("--seed -1", "`seed` must be between 0 and"),
}


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, capsys, tmp_path):
    arguments, message = MISTAKES[name]
    assert cli.main([*TINY, *arguments.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_task_is_found_by_its_name_or_that_of_its_family():
    assert registry.training_task("digits_mlp").name == "digits_mlp_32_varied"
    assert registry.training_task("digits_mlp_128x128").name == "digits_mlp_128x128"
    assert registry.training_task("quadratic").name == "quadratic_10"
    assert registry.training_task("user_module:bowl").name == "bowl"
