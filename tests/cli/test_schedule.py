"""`l2o schedule`, from a release file to the optimizer that is loaded."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import noisy_theta, small_policy

import l2o
from l2o.cli.main import main


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "policy.safetensors"
    lopt = small_policy(hyperparameters=["momentum"])
    l2o.save(path, lopt, noisy_theta(lopt), {"task": ["user_module:bowl"], "horizon": [20]})
    return path


def test_files_of_a_schedule(released, tmp_path, capsys):
    out = tmp_path / "out"
    line = f"schedule {released} --seeds 8 --out {out}"
    assert main(line.split()) == 0, capsys.readouterr().err
    content = json.loads((out / "bowl.json").read_text())
    rates = content["hyperparameters"]["learning_rate"]
    assert len(rates) == 20 and content["cost"]["low"] <= content["cost"]["value"]
    rows = list(csv.DictReader((out / "bowl.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == [str(i) for i in range(20)]
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], rates, rtol=1e-6)
    for row in rows:
        low, middle, high = (float(row[f"momentum{end}"]) for end in ("_low", "", "_high"))
        assert low - 1e-3 <= middle <= high + 1e-3
    assert (out / "bowl.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "report.html").read_text().count("<svg") == 1
    assert "bowl" in capsys.readouterr().out
    tx = l2o.load_schedule(out / "bowl.json")
    updates, _ = tx.update(jnp.float32(1.0), tx.init(jnp.float32(0.0)), jnp.float32(0.0))
    np.testing.assert_allclose(updates, -rates[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits", "`RUN` must be a policy that sets hyperparameters; got one of nominal_mlp"),
        ("nothing", "`RUN` must name an optimizer"),
        ("{} --seeds 4", "`seeds` must be at least 8"),
        ("{} --horizon 0", "`horizon` must be positive"),
        ("{} --task nothing", "`task` must be a known name"),
        (f"{{}} --out {__file__}", "`out` must be a folder that can be written"),
    ],
)
def test_mistakes_are_one_line(released, words, message, capsys):
    assert main(["schedule", *words.format(released).split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
