"""What a search has found: `search.json`, a page with a figure, and a table of trials."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2o.evaluation import plots
from l2o.evaluation.html import document, table
from l2o.evaluation.report import environment, plain_table, write_json
from l2o.evaluation.tables import number
from l2o.runs.folder import atomic_write
from l2o.search.halving import Trial, best_trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

NAME = "search.json"


def write_search_report(
    folder: Path,
    trials: Sequence[Trial],
    rungs: Sequence[int],
    *,
    commands: Mapping[int, str],
    config: Mapping[str, Any],
) -> Path:
    """Write `search.json` and `report.html`; returns the path of the page.

    Args:
        folder: Folder of the search.
        trials: Its trials.
        rungs: Outer steps at which they are scored.
        commands: Command line that repeats each trial, by number.
        config: What the search is.
    """
    best = best_trial(trials)
    write_json(
        folder / NAME,
        {
            "rungs": list(rungs),
            "inner_steps": sum(trial.budget_used for trial in trials),
            "best": None if best is None else best.number,
            "trials": [
                {
                    **dataclasses.asdict(trial),
                    "run_dir": f"trials/{trial.number:03}",
                    "command": commands[trial.number],
                }
                for trial in trials
            ],
            "config": config,
            "environment": environment(),
        },
    )
    content = json.loads((folder / NAME).read_text())
    figure = plots.svg([scores_by_steps(content)]) if best else ""
    atomic_write(folder / "report.html", page(content, figure).encode())
    return folder / "report.html"


def cells(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of trials, the best ones first."""
    trials = content["trials"]
    names = list(trials[0]["values"]) if trials else []

    def rank(trial: Mapping[str, Any]) -> tuple[bool, int, float]:
        last = max(map(int, trial["scores"]), default=0)
        return bool(trial["error"]), -last, -trial["scores"].get(str(last), 0.0)

    def row(trial: Mapping[str, Any]) -> list[str]:
        last = max(trial["scores"], key=int, default=None)
        return [
            f"{trial['number']:03}" + (" (best)" if trial["number"] == content["best"] else ""),
            *(shown(trial["values"][name]) for name in names),
            last or "0",
            trial["error"] or (number(trial["scores"][last]) if last else ""),
        ]

    return ["trial", *names, "outer steps", "score"], [row(t) for t in sorted(trials, key=rank)]


def shown(value: float | int | str) -> str:
    """A value of a setting, as in tables."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def search_table(content: Mapping[str, Any]) -> "Table":
    """Tabulate trials for a terminal."""
    columns, rows = cells(content)
    found = plain_table(f"{len(rows)} trials, {content['inner_steps']:,} inner steps")
    for column in columns:
        found.add_column(column)
    for row in rows:
        found.add_row(*row)
    return found


def scores_by_steps(content: Mapping[str, Any]) -> plots.Draw:
    """Draw each trial's score against the inner steps of its own, the best one marked."""

    def draw(axes: "Axes") -> None:
        for trial in content["trials"]:
            is_best = trial["number"] == content["best"]
            color = plots.COLORS["learned" if is_best else "control"][0]
            steps = sorted(map(int, trial["scores"]))
            (line,) = axes.plot(
                [step * trial["cost"] for step in steps],
                [trial["scores"][str(step)] for step in steps],
                ".-",
                color=color,
                linewidth=2.0 if is_best else 0.8,
                zorder=3 if is_best else 2,
            )
            if is_best:
                line.set_label(f"trial {trial['number']:03}, the best")
        axes.set_xscale("log")
        plots.label(axes, "trials at the rungs", "inner steps", "validation score")
        axes.legend(**plots.LEGEND)

    return draw


def page(content: Mapping[str, Any], figure: str) -> str:
    """Write the page of a search, which refers to nothing outside itself."""
    trials = {trial["number"]: trial for trial in content["trials"]}
    best = trials.get(content["best"])
    columns, rows = cells(content)
    body = BODY.format(
        about=html.escape(
            f"{len(rows)} trials, {content['inner_steps']:,} inner steps; scored by meta-"
            f"validation at outer steps {', '.join(map(str, content['rungs']))}."
        ),
        best=f"<p>The best one again:</p><pre>{html.escape(best['command'])}</pre>"
        if best
        else "<p>No trial has a score.</p>",
        figure=f"<figure>{figure}</figure>" if figure else "",
        trials=table(columns, rows),
    )
    return document(
        "l2o search", body, environment=content["environment"], config=content["config"]
    )


BODY = """<h1>Search over settings of meta-training</h1>
<p>{about}</p>
{best}
{figure}
<h2>Trials</h2>
<p>A score is that of the trial's last rung. As settings were chosen by it, evaluate the best trial
on tasks that it was not validated on.</p>
{trials}
"""
