"""`l2o pareto`, from files to the page."""

import csv
import json

import pytest
from small_policies import noisy_theta, small_policy

import l2o
from l2o.cli.main import main

OBJECTIVES = ("log_loss", "examples")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    told = small_policy(hyperparameters=("batch_fraction",), objectives=OBJECTIVES)
    l2o.save(folder / "told.safetensors", told, noisy_theta(told, scale=1.0))
    plain = small_policy(hyperparameters=("batch_fraction",))
    for seed in (0, 1):
        l2o.save(folder / f"plain{seed}.safetensors", plain, noisy_theta(plain, seed=seed))
    return folder


def test_points_hypervolumes_and_a_page(released, tmp_path, capsys):
    told, plain = (
        released / "told.safetensors",
        [released / f"plain{i}.safetensors" for i in (0, 1)],
    )
    words = f"pareto told={told} plain={plain[0]},{plain[1]} adam=user_module:RATES --horizon 20"
    options = f"--task digits_mlp --tasks digits_mlp_32 --seeds 8 --preferences 3 --out {tmp_path}"
    assert main([*words.split(), *options.split()]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "pareto.json").read_text())
    (row,) = content["tasks"]
    assert [len(entry["points"]) for entry in row["optimizers"]] == [3, 2, 2]
    used = {e["name"]: [p["costs"][1]["value"] for p in e["points"]] for e in row["optimizers"]}
    assert used["adam"] == [1.0, 1.0]
    assert len(set(used["told"])) == 3 and all(0 < share < 1 for share in used["told"])
    rows = list(csv.DictReader((tmp_path / "pareto.csv").read_text().splitlines()))
    assert len(rows) == 7 and rows[0]["point"] == "0 log_loss, 1 examples"
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 1 and "http" not in page.partition("<pre>")[0]
    shown = capsys.readouterr().out
    assert "told" in shown and "adam" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "`RUN` must name at least one optimizer; got none"),
        ("nothing", "`RUN` must name an optimizer"),
        ("digits a=digits digits", "`RUN` must name each once; got digits twice"),
        ("user_module:NO_PAIR", "`RUN` must be a pair (make, settings)"),
        ("user_module:NO_SETTINGS", "`RUN` must be a pair (make, settings)"),
        ("user_module:NO_HORIZON", "`RUN` must be a pair (make, settings)"),
        ("digits --preferences 1", "`preferences` must be at least 2; got 1"),
        (
            "digits --reference 1",
            "`reference` must be a cost for each of log_loss, examples; got 1",
        ),
        (
            "digits --objectives loss f1",
            "`objectives` must be log_loss, loss, examples or a metric",
        ),
        ("digits --seeds 4", "`seeds` must be at least 8"),
        ("digits --tasks digits_mlp_33", "`tasks` must be a known name"),
        (f"digits --out {__file__}", "`out` must be a folder that can be written"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["pareto", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
