"""The page of runs side by side: `compare.json`, `curves.csv` and `report.html`."""

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2o.evaluation import plots
from l2o.evaluation.html import document, table
from l2o.evaluation.report import environment, plain_table, write_json
from l2o.evaluation.run_comparison import Run, behind_first, common_tasks, differences, totals
from l2o.evaluation.statistics import Estimate
from l2o.evaluation.tables import COMPARISON, comparison_cells, interval_text, number
from l2o.runs.folder import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

NAME = "compare.json"

TOTALS = ("run", "outer steps", "inner steps", "seconds", "meta-loss", "validation score")

SETTINGS_OF_META_LOSS = ("task", "weights", "horizon", "window", "method.objective", "method.name")
"""Settings by which meta-losses are of different things, or what their names begin with."""


def write_run_comparison(folder: str | Path, runs: Sequence[Run]) -> Path:
    """Write `compare.json`, `curves.csv` and `report.html`; returns the path of the page.

    Args:
        folder: Folder, which is made.
        runs: Runs of different names.
    """
    folder = Path(folder)
    tasks = common_tasks(runs)
    write_json(
        folder / NAME,
        {
            "runs": [{"name": run.name, "path": str(run.path), **totals(run)} for run in runs],
            "settings": differences(runs),
            "evaluations": [
                {
                    "task": task,
                    "runs": {r.name: r.evaluations[task] for r in runs if task in r.evaluations},
                    "behind_first": {k: v._asdict() for k, v in behind_first(runs, task).items()},
                }
                for task in tasks
            ],
            "environment": environment(),
        },
    )
    atomic_write(folder / "curves.csv", as_csv(runs).encode())
    content = json.loads((folder / NAME).read_text())
    atomic_write(folder / "report.html", page(content, plots.svg(panels(runs))).encode())
    return folder / "report.html"


def as_csv(runs: Sequence[Run]) -> str:
    """A row for each line of the runs' metrics, with the score of theta where there is one."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "step", "inner_steps", "seconds", "meta_loss", "score"])
    for run in runs:
        scores = {row["step"]: row["score"] for row in run.validation}
        seconds = 0.0
        for line in run.metrics:
            seconds += line.get("seconds") or 0.0
            cells = (line["inner_steps"], f"{seconds:.3f}", line.get("meta_loss"))
            writer.writerow([run.name, line["step"], *cells, scores.get(line["step"])])
    return text.getvalue()


def panels(runs: Sequence[Run]) -> list[plots.Draw]:
    """Meta-losses against inner steps, and validation scores if there are any."""
    palette = (*plots.COLORS["learned"], *plots.COLORS["baseline"])

    def curves(title: str, y: str, field: str, rows_of: Mapping[str, Any]) -> plots.Draw:
        def draw(axes: "Axes") -> None:
            for i, run in enumerate(runs):
                steps = {line["step"]: line["inner_steps"] for line in run.metrics}
                rows = [row for row in rows_of[run.name] if row["step"] in steps]
                (line,) = axes.plot(
                    [steps[row["step"]] for row in rows],
                    np.array([row.get(field) for row in rows], np.float64),
                    linestyle=plots.DASHES[i // len(palette) % len(plots.DASHES)],
                    color=palette[i % len(palette)],
                    linewidth=1.2,
                )
                line.set_label(plots.plain(run.name))
            plots.label(axes, title, "inner steps", y)
            axes.legend(**plots.LEGEND)

        return draw

    metrics = {run.name: run.metrics for run in runs}
    scores = {run.name: run.validation for run in runs}
    found = [curves("meta-training", "meta-loss", "meta_loss", metrics)]
    if any(scores.values()):
        found.append(curves("validation", "score", "score", scores))
    return found


def total_cells(content: Mapping[str, Any]) -> list[list[str]]:
    """The table of runs."""

    def score(run: Mapping[str, Any]) -> str:
        found = "" if run["score"] is None else f"{number(run['score'])} at {run['score_step']}"
        return found

    return [
        [
            run["name"],
            f"{run['step']:,} of {run['steps']:,}",
            f"{run['inner_steps']:,}",
            f"{run['seconds']:,.0f}",
            number(run["meta_loss"]) if run["meta_loss"] is not None else "",
            score(run),
        ]
        for run in content["runs"]
    ]


def setting_cells(content: Mapping[str, Any]) -> list[list[str]]:
    """The table of settings that differ."""
    show = lambda value: value if isinstance(value, str) else json.dumps(value)
    return [[name, *map(show, values)] for name, values in content["settings"].items()]


def evaluation_cells(content: Mapping[str, Any]) -> list[list[str]]:
    """The table of evaluations, a row for each run on each task."""
    rows = []
    for found in content["evaluations"]:
        for name, row in found["runs"].items():
            ratio = found["behind_first"].get(name)
            behind = interval_text(*Estimate(**ratio)) if ratio else ""
            task, *cells = comparison_cells(row)
            rows.append([task, name, behind, *cells])
    return rows


EVALUATIONS = (COMPARISON[0], "run", "times the first's loss", *COMPARISON[1:])
"""Columns of the table of evaluations."""


def total_table(content: Mapping[str, Any]) -> "Table":
    """Tabulate runs for a terminal."""
    return _table("Runs", TOTALS, total_cells(content))


def setting_table(content: Mapping[str, Any]) -> "Table":
    """Tabulate for a terminal the settings that differ."""
    names = [run["name"] for run in content["runs"]]
    return _table("Settings that differ", ["", *names], setting_cells(content))


def evaluation_table(content: Mapping[str, Any]) -> "Table":
    """Tabulate evaluations for a terminal."""
    shown = ("task", "run", "times the first's loss", "learned", "best baseline", "speed-up")
    rows = [dict(zip(EVALUATIONS, row, strict=True)) for row in evaluation_cells(content)]
    return _table("Evaluations", shown, [[row[name] for name in shown] for row in rows])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.text import Text

    found = plain_table(title)
    for column in columns:
        found.add_column(Text(column), overflow="fold")
    for row in rows:
        found.add_row(*map(Text, row))
    return found


def caveats(content: Mapping[str, Any]) -> list[str]:
    """What a reader must know about the comparison."""
    names = [n for n in content["settings"] if n.startswith(SETTINGS_OF_META_LOSS)]
    found = []
    if names:
        found.append(f"Meta-losses are of different things: {', '.join(names)} differ.")
    scored = [i for i, run in enumerate(content["runs"]) if run["score"] is not None]
    for name, values in content["settings"].items():
        on = {json.dumps(values[i]) for i in scored}
        if name.startswith("validation.validate_on") and len(on) > 1:
            return [*found, "Validation scores are on different tasks."]
    return found


def page(content: Mapping[str, Any], figure: str) -> str:
    """Write the page, which refers to nothing outside itself."""
    names = [run["name"] for run in content["runs"]]
    rows = evaluation_cells(content)
    body = BODY.format(
        caveats="".join(f"<p class='note'>{html.escape(text)}</p>" for text in caveats(content)),
        totals=table(TOTALS, total_cells(content)),
        figure=f"<figure>{figure}</figure>",
        settings=table(["", *names], setting_cells(content)) or "<p>None.</p>",
        evaluations=table(EVALUATIONS, rows) or "<p>No task that two of them have.</p>",
    )
    return document("l2o compare", body, environment=content["environment"])


BODY = """<h1>Runs side by side</h1>
{caveats}
{totals}
<p>Seconds are without compilation; the meta-loss is the mean over the last tenth of a run.</p>
{figure}
<h2>Settings that differ</h2>
{settings}
<h2>Evaluations</h2>
{evaluations}
<p>“Times the first's loss”: geometric mean over the seeds, where both were evaluated on the same
ones.</p>
"""
