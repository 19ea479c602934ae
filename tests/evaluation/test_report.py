import dataclasses
import html.parser
import io
import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.compare import compare
from l2o.evaluation.report import comparison_table, render_report, write_report
from l2o.evaluation.tables import (
    CHOSEN,
    COMPARISON,
    DEFINITIONS,
    ENTRANTS,
    entrant_cells,
    number,
    setting,
    shortfalls,
)
from l2o.rng import stream
from l2o.task import Task

VOID = {"meta", "br", "hr", "img", "link", "input"}

KEYS_OF_A_ROW = {
    "task",
    "steps",
    "learned_final_loss",
    "best_baseline",
    "best_baseline_final_loss",
    "learned_final_loss_by_seed",
    "learned_diverged",
    "speedup",
    "speedup_low",
    "speedup_high",
    "reached",
}


class WellFormed(html.parser.HTMLParser):
    """Checks that tags nest, and keeps the tags, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.values, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value or "" for _, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value or "" for _, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def task_named(name: str) -> Task:
    return Task(
        name=name,
        sample=lambda key: (),
        init=lambda key, instance: jnp.array([2.0, 3.0]),
        batch=lambda key, instance, data, split: (),
        loss=lambda x, batch, instance: jnp.sum(jnp.square(x)),
        loss_cap=100.0,
        metrics=lambda x, batch, instance: {"norm": jnp.linalg.norm(x)},
    )


def small(name, learned, **options):
    sizes = dict(horizon=6, num_seeds=8, num_random=0, baselines=("sgdm",)) | options
    return compare(stream(0, "evaluation"), task_named(name), learned, **sizes)


@pytest.fixture(scope="module")
def comparisons():
    return [
        small("<b>bold</b> & $a$", optax.sgd(0.5), controls={"_untrained": optax.sgd(0.0)}),
        small("hopeless", optax.sgd(jnp.nan), baselines=("adam", "sgdm")),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory, comparisons):
    folder = tmp_path_factory.mktemp("report")
    lines = [
        {"step": 0, "meta_loss": 2.0, "finite": 1.0},
        {"step": 10, "meta_loss": None, "finite": 0.5},
        {"step": 20, "meta_loss": 1.0, "finite": 1.0},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 30, "meta'
    (folder / "metrics.jsonl").write_text(text)
    scores = [
        {"step": 10, "score": 0.25, "_$other/score": 0.125, "wine/score": 0.375},
        {"step": 20, "score": 0.125, "_$other/score": 0.0, "wine/score": 0.25},
    ]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, scores)) + '\n{"st')
    config = {"task": "<script>alert(1)</script>", "rate": float("nan")}
    write_report(folder, comparisons, config=config)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "report")


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def parsed(folder) -> WellFormed:
    page = WellFormed()
    page.feed((folder / "report.html").read_text())
    page.close()
    assert page.open == []
    return page


def test_report_json_is_strict_and_has_the_agreed_keys(folder):
    content = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert len(content["comparisons"]) == 2
    for row in content["comparisons"]:
        assert row.keys() >= KEYS_OF_A_ROW
    assert {"python", "jax", "device", "platform"} <= content["environment"].keys()
    assert content["config"] == {"task": "<script>alert(1)</script>", "rate": None}
    assert content["metrics"]["last"] == {"step": 20, "meta_loss": 1.0, "finite": 1.0}
    assert content["validation"]["step"] == 10 and content["validation"]["score"] == 0.25


def test_an_optimizer_that_returns_nan_is_in_the_report(folder):
    row = json.loads((folder / "report.json").read_text())["comparisons"][1]
    assert row["learned_diverged"] == 1.0
    assert row["learned_final_loss"] == 100.0
    assert row["speedup"] == 0.0
    assert row["learned_test"]["norm"]["median"] is None
    assert "hopeless the learned optimizer loses to adam" in parsed(folder).text


def test_the_documented_example_goes_from_a_report_to_aggregates(folder):
    suite = (Path(__file__).parents[2] / "docs" / "suite.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", suite, flags=re.DOTALL)
    assert example.count('"runs/digits"') == example.count('"adam"') == 1
    names: dict = {}
    exec(example.replace("runs/digits", str(folder)).replace('"adam"', '"sgdm"'), names)
    assert names["scores"].keys() == {"learned", "sgdm"}  # all others are on one task alone
    rows = names["report"]["comparisons"]
    assert names["learned"].shape == (rows[0]["num_seeds"], len(rows)) == (8, 2)
    # On the first task gradient descent at 1/2 is at the minimum after one step; NaN always fails.
    assert names["learned"][:, 0].tolist() == [1.0] * 8
    assert names["learned"][:, 1].tolist() == [0.0] * 8
    assert names["failed"].tolist() == [0.5]
    assert names["score"] == (0.5, 0.5, 0.5)
    beats = names["aggregates"].probability_of_improvement(names["learned"], names["rival"])
    assert names["wins"].low <= names["wins"].value == beats <= names["wins"].high


def test_report_html_is_well_formed_and_refers_to_nothing_outside(folder):
    page = parsed(folder)
    assert "svg" in page.tags
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    text = (folder / "report.html").read_text()
    assert "http" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert all(value.startswith("#") for value in re.findall(r'href="([^"]*)"', text))


def test_the_curve_of_validation_is_drawn_for_each_task_beside_that_of_meta_training(folder):
    text = parsed(folder).text
    assert {"meta-training", "validation: ★ best", "_$other", "wine", "mean"} <= {
        line.strip().removeprefix("\u200b") for line in text.splitlines()
    }
    (folder / "validation.jsonl").unlink()
    render_report(folder)
    assert "meta-training" in (text := parsed(folder).text) and "★ best" not in text


def test_user_strings_are_escaped(folder):
    page = parsed(folder)
    assert "b" not in page.tags
    assert "<b>bold</b> & $a$" in page.text
    assert "<script>alert(1)</script>" in page.text


def test_columns_are_defined_and_every_entrant_is_listed(folder):
    text, markdown = parsed(folder).text, (folder / "report.md").read_text()
    for name, meaning in DEFINITIONS.items():
        assert name in text and meaning in text
        assert meaning in markdown
    for column in (*COMPARISON, *ENTRANTS, *CHOSEN):
        assert column in text and column in markdown
    for name in ("adam at ", "sgdm at ", "_untrained at ", "norm", "meta-training"):
        assert name in text
    for name in ("adam at ", "sgdm at ", "_untrained at "):
        assert name in markdown


def test_the_markdown_has_tables_of_tasks_of_optimizers_and_of_settings(folder):
    lines = (folder / "report.md").read_text().splitlines()
    tables = [line.count("|") - 2 * line.count(r"\|") - 1 for line in lines if line[:1] == "|"]
    # A header and its rule; then two tasks; learned, rivals and a control; those but learned.
    entrants, chosen = [len(ENTRANTS)] * (2 + 3 + 3), [len(CHOSEN)] * (2 + 2 + 2)
    assert tables == [len(COMPARISON)] * 4 + entrants + chosen
    assert lines[0] == "# Learned optimizer against tuned rivals"


def test_losses_stand_in_the_columns_of_their_splits(comparisons):
    row = comparisons[0].summary
    interval = {"median": 0.25, "median_low": 0.125, "median_high": 0.5}
    test = {"loss": {"median": 4.0, "median_low": 2.0, "median_high": 8.0}}
    learned, *_ = entrant_cells({**row, "learned_valid": {"loss": interval}, "learned_test": test})
    assert learned[ENTRANTS.index("validation loss")] == "0.25 [0.125, 0.5]"
    assert learned[ENTRANTS.index("test loss")] == "4 [2, 8]"


def test_what_is_untuned_or_at_an_edge_is_marked_wherever_it_is_named(tmp_path):
    found = small("t", optax.sgd(0.5), baselines=("momo_adam",))
    row = found.summary
    edge = {**row["baselines"][0], "is_tuned": True, "at_grid_edge": True}
    for marked, mark in ((row, "(untuned)"), ({**row, "baselines": [edge]}, "(edge)")):
        write_report(tmp_path, [dataclasses.replace(found, summary=marked)])
        for text in (parsed(tmp_path).text, (tmp_path / "report.md").read_text()):
            assert text.count(f"momo_adam at 0.01 {mark}") >= 2
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(comparison_table([marked]))
        assert mark in console.export_text()


@pytest.mark.parametrize("edge", [True, False])
def test_tables_and_legends_say_what_was_chosen_and_mark_what_is_at_an_edge(
    comparisons, tmp_path, edge
):
    found = comparisons[1]
    adam, sgdm = found.summary["baselines"]
    config = {"learning_rate": 0.25, "b3": 0.9996, "horizon_fraction": 1.0}
    faster = {**config, "learning_rate": 0.5, "horizon_fraction": 0.6}
    adam = {**adam, "at_grid_edge": edge, "hyperparameters": config}
    adam["fastest_hyperparameters"] = faster
    sgdm = {**sgdm, "at_grid_edge": False, "fastest_hyperparameters": sgdm["hyperparameters"]}
    row = {**found.summary, "baselines": [adam, sgdm]}
    write_report(tmp_path, [dataclasses.replace(found, summary=row)])
    html, markdown = ((tmp_path / f"report.{end}").read_text() for end in ("html", "md"))
    name = "adam (edge)" if edge else "adam"
    best, fastest = "learning_rate 0.25, b3 0.9996", "learning_rate 0.5, b3 0.9996"
    cells = ["hopeless", name, best, f"{fastest}, schedule ends at 60 %"]
    others = ["hopeless", "sgdm", setting(sgdm["hyperparameters"]), "the same"]
    for wanted in (cells, others):
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in wanted)}</tr>" in html
        assert f"| {' | '.join(wanted)} |" in markdown
    in_legends = re.findall(r">(adam[^<]*|sgdm[^<]*)</text>", html)
    assert in_legends == [name, "sgdm"] * 2  # of the curves, and of the rates


def test_the_page_can_be_made_again_from_report_json(folder):
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert render_report(folder).keys() == {"report.html", "report.md"}
    assert (folder / "report.html").read_bytes() == before


def test_a_picture_is_drawn_on_request(folder):
    files = render_report(folder, png=True)
    assert files["report.png"].read_bytes().startswith(b"\x89PNG")


def test_a_report_without_comparisons_says_so(tmp_path):
    files = write_report(tmp_path / "new", [], png=True)
    assert files.keys() == {"report.json", "report.html", "report.md"}
    assert "No comparison has been run." in parsed(tmp_path / "new").text


def test_writes_leave_no_temporary_file_and_keep_the_old_report_when_they_fail(
    folder, monkeypatch, comparisons
):
    before = (folder / "report.json").read_bytes()
    names = sorted(os.listdir(folder))

    def full_disk(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(folder, comparisons[:1])
    assert (folder / "report.json").read_bytes() == before
    assert sorted(os.listdir(folder)) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "`run` must be a folder with a report.json; got"),
        ("{", "`report.json` must hold a report; got .* cannot be read"),
        (
            '{"comparisons": [{"task": "x"}], "curves": [{}], "grids": [[]], "config": {}, '
            '"environment": {}}',
            "`report.json` must hold a report; got .*, in which 'steps' is missing",
        ),
        ("[1, 2]", "`report.json` must hold a report; got .* without comparisons"),
        ("3", "`report.json` must hold a report; got .* cannot be read"),
        ('{"comparisons": []}', "`report.json` must hold a report; got .* without config, curves"),
    ],
)
def test_what_is_not_a_report_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        render_report(tmp_path)


def test_the_page_names_the_baselines_that_were_compared_with(written, tmp_path):
    text = parsed(written).text
    assert "\nLearned optimizer beside momentum SGD and Adam\n" in text
    for name, baseline in BASELINES.items():
        assert (baseline.description in text) == (name in ("adam", "sgdm"))
    empty = write_report(tmp_path / "empty", [])
    assert "beside rivals" in empty["report.html"].read_text()


def test_a_task_that_was_meta_trained_on_is_marked_in_the_page_and_the_table(comparisons, tmp_path):
    first, second = comparisons
    found = dataclasses.replace(first, summary={**first.summary, "task": "shown", "seen": True})
    chosen_by = {**second.summary, "task": "other", "validated": True}
    other = dataclasses.replace(second, summary=chosen_by)
    write_report(tmp_path, [found, other])
    text = parsed(tmp_path).text
    assert "shown (meta-trained)" in text and "other (meta-trained)" not in text
    assert "other (validated)" in text and "shown (validated)" not in text
    console = Console(width=80, record=True, file=io.StringIO())
    long = {**found.summary, "task": "digits_mlp_64x64x64x64"}
    console.print(comparison_table([long]))
    text = console.export_text()
    cells = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert "…" not in text and "(meta-trained)" in cells
    assert "digits_mlp_64x64x64x64" in "".join(cells)


def test_the_table_for_the_terminal_shows_names_as_they_are(comparisons):
    console = Console(width=200, record=True, file=io.StringIO())
    rows = [c.summary for c in comparisons]
    console.print(comparison_table([{**rows[0], "task": "[red]name[/red]"}, rows[1]]))
    text = console.export_text()
    assert "[red]name[/red]" in text
    assert "100%" in text
    assert "speed-up" in text


def test_the_learned_optimizer_is_said_to_lose_to_controls_too(comparisons):
    row = {**comparisons[0].summary, "learned_final_loss": 1e6}
    assert len(shortfalls(row)) == 2
    assert shortfalls({**row, "learned_final_loss": -1.0}) == []
    for low, says in ((1e5, "loses to"), (-1e5, "is behind, but not told apart from,")):
        told = shortfalls({**row, "learned_final_loss_low": low})
        assert all(f"the learned optimizer {says} " in sentence for sentence in told)


def test_the_page_says_which_run_it_is_of(folder):
    content = json.loads((folder / "report.json").read_text())
    about = re.search(r"<h1>.*</h1>\n<p>(.*)</p>", (folder / "report.html").read_text())
    assert about
    assert about[1].startswith(f"{content['name']}, {content['written']}, l2o {version('l2o')}")
    content |= {"compute_seconds": 90_000.0}
    (folder / "report.json").write_text(json.dumps(content))
    render_report(folder)
    assert "meta-trained for 1,500.0 minutes" in (folder / "report.html").read_text()


def test_good_news_is_no_warning(folder):
    content = json.loads((folder / "report.json").read_text())
    for row in content["comparisons"]:
        row["learned_final_loss"] = -1.0
    (folder / "report.json").write_text(json.dumps(content))
    render_report(folder)
    text = (folder / "report.html").read_text()
    assert "class='note'" not in text
    assert "<p class='good'>On none of these tasks does the learned optimizer end above" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1209.4, "1,210"), (999.0, "999"), (0.01234, "0.0123"), (2.5e7, "2.5e+07"), (None, "n/a")],
)
def test_numbers(value, text):
    assert number(value) == text
