"""`l2o suite`."""

import json
from pathlib import Path

import pytest

from l2o.cli import main as cli


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def test_tasks_are_listed_with_the_data_that_they_lack(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    assert cli.main(["suite", "--list"]) == 0
    out = capsys.readouterr().out
    assert "38 tasks" in out and "horizon x25" in out and "emoji (not fetched)" in out
    assert "fetch data by: l2o data fetch fashion_mnist mnist emoji moby_dick" in out
    assert cli.main(["suite", "--list", "--json", "--tasks", "poisson"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "poisson" and row["dataset"] == "" and row["is_quick"]


OWN = ("suite", "--suite", "user_module:suite", "--optimizer", "digits", "--reference", "sgdm")


def test_a_suite_of_ones_own_is_run_and_reported(capsys):
    assert cli.main(OWN) == 0
    out = capsys.readouterr().out
    assert "1/2 bowl: sgdm" in out and "2/2 bowl: digits" in out
    assert "digits beside tuned sgdm on 1 task of user_module:suite" in out
    found = json.loads(Path("runs/suite/suite.json").read_text())
    assert found["config"]["command"].endswith("--optimizer digits --reference sgdm")
    assert Path("runs/suite/tasks/bowl.html").is_file()
    assert "it replaces" not in out
    assert cli.main([word if word != "digits" else "prodigy" for word in OWN]) == 0
    assert "it replaces a report that had digits, too" in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_is_the_same_again_and_printed_as_json(capsys):
    assert cli.main(OWN) == 0
    before = json.loads(Path("runs/suite/suite.json").read_text())
    capsys.readouterr()
    assert cli.main([*OWN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == before["rows"] and found["aggregates"] == before["aggregates"]
    assert cli.main(["report", "runs/suite"]) == 0
    assert "digits beside tuned sgdm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`optimizer` must name at least one; got none"),
        (["--optimizer", "adma"], "`optimizer` must be a known name; got adma. Try adam"),
        (
            ["--optimizer", "adam", "--reference", "dog"],
            "must be a baseline that is tuned; got dog",
        ),
        (["--optimizer", "adam", "--suite", "math:pi"], "must be a sequence of l2o.SuiteTask"),
        (["--optimizer", "adam", "--suite", "suite-2"], "must be a known name; got suite-2"),
        (["--optimizer", "adam", "--tasks", "poison"], "must be a known name; got poison. Try poi"),
        (["--optimizer", "adam", "--seed", "-1"], "`seed` must be"),
        (["--optimizer", "runs/none"], "must be a release file or a run folder; got runs/none"),
        (["--optimizer", "adam", "--reference", "digits"], "`reference` must be a known name; got"),
        (["--optimizer", "adam", "--seeds", "4"], "`seeds` must be at least 8"),
        (["--optimizer", "adam", "--trials", "-1"], "`trials` must be at least 0"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    assert cli.main(["suite", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_the_report_of_a_run_is_not_replaced(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")
    assert cli.main(["suite", "--optimizer", "adam", "--out", "run"]) == 2
    assert "`out` must be a folder for suites; got run" in capsys.readouterr().err
