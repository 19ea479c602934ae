"""`l2o compare`: folders as l2o meta-train leaves them, whose numbers are known."""

import copy
import csv
import json

import numpy as np
import pytest
from user_module import bowl

import l2o
from l2o.cli.main import main
from l2o.cli.presets import PRESETS
from l2o.evaluation.compare import compare
from l2o.evaluation.report import write_report
from l2o.rng import stream


def write_run(folder, losses, scores, *, std, comparison=None, seed=0):
    """A run with two outer steps a line, of ten inner steps each."""
    folder.mkdir()
    config = PRESETS["smoke"].recorded() | {"seed": seed}
    config["method"] |= {"std": std}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 2 * i, "inner_steps": 20 * i, "meta_loss": loss, "seconds": 1.5}
        for i, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"step": 2 * i, "score": score} for i, score in enumerate(scores, 1)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if comparison is not None:
        write_report(folder, [comparison], config=config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs, two of which were evaluated: the losses of the second are twice the first's."""
    folder = tmp_path_factory.mktemp("runs")
    lopt = l2o.learnable_sgd(learning_rate=0.1)
    theta = lopt.init(stream(0, "meta_training"))
    first = compare(
        stream(0, "evaluation"),
        bowl(),
        lambda *, horizon: lopt.transform(theta, horizon=horizon),
        horizon=5,
        num_seeds=8,
        baselines=("sgdm",),
        num_random=0,
    )
    second = copy.deepcopy(first)
    ours = second.summary["learned_final_loss_by_seed"]
    second.summary["learned_final_loss_by_seed"] = [2.0 * loss for loss in ours]
    write_run(folder / "a", [3.0, 2.0, 1.0], [0.1, 0.3, 0.2], std=0.1, comparison=first)
    write_run(folder / "b", [4.0, None, 2.5], [], std=0.2, comparison=second)
    write_run(folder / "c", [], [], std=0.1, seed=1)
    return folder


def test_scores_on_different_tasks_are_told(runs, tmp_path):
    def told(*folders):
        assert main(["compare", *map(str, folders), "--out", str(tmp_path / "out")]) == 0
        page = (tmp_path / "out" / "report.html").read_text()
        return "Validation scores are on different tasks." in page

    write_run(tmp_path / "d", [3.0], [0.1], std=0.1)
    write_run(tmp_path / "e", [3.0], [], std=0.1)
    for name in "de":
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        config["validation"] = {"validate_on": ["wine_mlp"]}
        path.write_text(json.dumps(config))
    assert told(runs / "a", tmp_path / "d")
    assert not told(runs / "a", tmp_path / "e")  # which has no score


def test_runs_side_by_side(runs, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(runs / "a"), f"wide={runs / 'b'}", str(runs / "c"), "--out", str(out)]
    assert main(["compare", *words]) == 0, capsys.readouterr().err
    content = json.loads((out / "compare.json").read_text())
    by_name = {run.pop("name"): run for run in content["runs"]}
    assert list(by_name) == ["a", "wide", "c"]
    shown = {"step": 6, "steps": 20, "inner_steps": 60, "seconds": 4.5}
    assert by_name["a"] | shown | {"meta_loss": 1.0, "score": 0.3, "score_step": 4} == by_name["a"]
    assert by_name["wide"] | shown | {"meta_loss": 2.5, "score": None} == by_name["wide"]
    assert by_name["c"] | {"step": 0, "inner_steps": 0, "meta_loss": None} == by_name["c"]
    assert content["settings"] == {"seed": [0, 0, 1], "method.std": [0.1, 0.2, 0.1]}
    (evaluation,) = content["evaluations"]
    assert list(evaluation["runs"]) == ["a", "wide"] and evaluation["task"] == "bowl"
    ratio = evaluation["behind_first"]["wide"]
    np.testing.assert_allclose([ratio["low"], ratio["value"], ratio["high"]], 2.0)
    rows = list(csv.DictReader((out / "curves.csv").read_text().splitlines()))
    assert [(row["run"], row["step"], row["meta_loss"], row["score"]) for row in rows] == [
        ("a", "2", "3.0", "0.1"),
        ("a", "4", "2.0", "0.3"),
        ("a", "6", "1.0", "0.2"),
        ("wide", "2", "4.0", ""),
        ("wide", "4", "", ""),
        ("wide", "6", "2.5", ""),
    ]
    assert rows[2]["seconds"] == "4.500"
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 1 and "method.std" in page and "http" not in page
    shown = capsys.readouterr().out
    assert "method.std" in shown and "Meta-losses" not in shown


def test_meta_losses_of_different_things_are_marked(runs, tmp_path, capsys):
    other = tmp_path / "other"
    write_run(other, [1.0], [], std=0.1)
    config = json.loads((other / "config.json").read_text()) | {"horizon": [80]}
    (other / "config.json").write_text(json.dumps(config))
    assert main(["compare", str(runs / "a"), str(other), "--out", str(tmp_path / "out")]) == 0
    assert "Meta-losses are of different things: horizon differ" in capsys.readouterr().out


def test_folders_of_one_name_are_told_apart(runs, tmp_path, capsys):
    write_run(tmp_path / "a", [1.0], [], std=0.1)
    words = [str(runs / "a"), f"{tmp_path / 'a'}/", "--out", str(tmp_path / "out")]
    assert main(["compare", *words]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["a", str(tmp_path / "a")]
    assert content["evaluations"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "`RUN` must name two runs or more; got none"),
        ("{}/a", "`RUN` must name two runs or more; got "),
        ("{}/nothing", "`RUN` must be a folder of l2o meta-train; got "),
        ("{}/a {}/b --out=", "`out` must name a folder; got none. Try out=runs/compare."),
        ("{}/a {}/d", "`RUN` must be a folder of l2o meta-train; got "),
        ("x={}/a x={}/b", "`RUN` must name each once; got x twice"),
        ("{}/a {}/a {}/a", "`RUN` must name each once; got "),
        ("{}/a {}/b --out {}/c", "`out` must be a folder for comparisons"),
        (f"{{}}/a {{}}/b --out {__file__}", "`out` must be a folder that can be written"),
    ],
)
def test_mistakes_are_one_line(runs, words, message, capsys):
    assert main(["compare", *words.replace("{}", str(runs)).split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
