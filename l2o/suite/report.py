"""The report of a suite: `suite.json`, pages for a browser, Markdown, PNG and PDF."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from l2o.evaluation import aggregate_plots, plots
from l2o.evaluation.report import environment, plain_table, write_json
from l2o.evaluation.statistics import Estimate
from l2o.runs.folder import atomic_write
from l2o.suite import pages
from l2o.suite.result import Result
from l2o.suite.summary import read_matrix
from l2o.suite.tables import LOSS_NAMES, aggregate_cells, findings, heading, markdown

NAME = "suite.json"


def write_suite_report(
    folder: str | Path, summary: Mapping[str, Any], *, suite: str, config: Mapping[str, Any]
) -> Path:
    """Write `suite.json`, `report.html` with a page a task, `report.md`, `report.png` and `.pdf`.

    Args:
        folder: Folder of the suite's results.
        summary: What `l2o.suite.summary.summarise` has found.
        suite: Name of the suite, with its version.
        config: Settings to show, the command line among them.

    Returns:
        Path of `report.html`.
    """
    content = {"suite": suite, **summary, "config": config, "environment": environment()}
    write_json(Path(folder) / NAME, content)
    return render_suite_report(folder)["report.html"]


def read_suite_report(folder: str | Path) -> dict[str, Any]:
    """Read a folder's `suite.json`.

    Raises:
        ValueError: If there is none, or it is not a suite's report.
    """
    path = Path(folder) / NAME
    try:
        content = json.loads(path.read_text())
        missing = {"suite", "reference", "entrants", "rows", "aggregates"} - set(content)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"`run` must be a folder with a {NAME}; got {folder}, where none can be read. "
            f"Try l2o suite --out {folder}."
        ) from error
    if missing:
        raise ValueError(
            f"`{NAME}` must hold a suite's report; got {path} without {', '.join(sorted(missing))}."
            " Run l2o suite again."
        )
    return content


def render_suite_report(folder: str | Path) -> dict[str, Path]:
    """Make the pages and figures of a suite's report from its `suite.json`.

    Returns:
        Paths by file name.
    """
    content = read_suite_report(folder)
    rows = aggregate_figures(content)
    files = {
        "report.html": pages.index(content, [plots.svg(row) for row in rows]).encode(),
        "report.md": markdown(content).encode(),
        **{
            f"tasks/{row['task']}.html": pages.task_page(
                content, row, plots.svg(curves(row))
            ).encode()
            for row in content["rows"]
        },
    }
    if rows:
        for kind in ("png", "pdf"):
            files[f"report.{kind}"] = plots.image(rows, kind, title=heading(content))
    for path in (Path(folder) / "tasks").glob("*.html"):  # of a report before this one
        if f"tasks/{path.name}" not in files and pages.MADE_BY in path.read_text(errors="replace"):
            path.unlink()
    for name, data in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    return {name: Path(folder) / name for name in files}


def aggregate_figures(content: Mapping[str, Any]) -> list[list[plots.Draw]]:
    """Make rows of panels: scores, profiles, steps to the targets, trained on by tested on."""
    if not content["aggregates"]:
        return []
    tasks = f"{len(content['aggregated_tasks'])} tasks"
    names = [e["name"] for e in content["entrants"]]
    thresholds, ratios = (content["profiles"][k] for k in ("thresholds", "ratios"))

    def of(losses: str, words: str) -> list[plots.Draw]:
        means = {n: content["aggregates"][n][losses]["interquartile_mean"] for n in names}
        bands = content["profiles"]["scores"][losses]
        steps = {n: np.array(content["profiles"]["steps"][losses][n]) for n in names}
        return [
            aggregate_plots.intervals(
                {n: as_estimate(v) for n, v in means.items()}, title=f"{words} loss, {tasks}"
            ),
            aggregate_plots.profiles(
                thresholds,
                {n: as_estimate(bands[n]) for n in names},
                title=f"scores by {words} loss",
            ),
            aggregate_plots.profiles(
                ratios,
                {n: Estimate(v, v, v) for n, v in steps.items()},
                title=f"steps to {content['reference']}'s {words} loss",
                x_label="times the fewest steps",
                y_label="fraction of runs that are there",
                is_log=True,
            ),
        ]

    rows = [of(losses, words) for losses, words in LOSS_NAMES.items()]
    if content["transfer"]:
        matrix = read_matrix(content["transfer"])
        title = "mean score by validation loss"
        rows.append([aggregate_plots.heat_map(matrix, title=title, value_label="mean score")])
    return rows


def curves(row: Mapping[str, Any]) -> list[plots.Draw]:
    """Make two panels for a task: medians and quartiles of training and of validation loss."""

    def panel(losses: str) -> plots.Draw:
        entrants = [
            {"name": name, "role": "baseline", **found[losses]["curve"]}
            for name, found in row["results"].items()
        ]
        steps = next(iter(row["results"].values()))["steps"]
        return plots.training_curves(
            f"{row['task']}, {row['horizon']} steps",
            {"steps": steps, "entrants": entrants},
            y_label=f"{LOSS_NAMES[losses]} loss (fixed batches)",
        )

    return [panel(losses) for losses in LOSS_NAMES]


def as_estimate(values: Mapping[str, Any]) -> Estimate:
    """A number, or an array of them, with its interval, from JSON."""
    value, low, high = (np.array(values[k], np.float64) for k in ("value", "low", "high"))
    return Estimate(value, low, high)


def progress_line(found: Sequence[Result], total: int) -> str:
    """Say how far a suite is and what was last."""
    last = found[-1]
    final = float(np.median(last.best.train[:, -1]))
    spent = "kept" if last.is_kept else f"{last.seconds:.0f} s"
    return f"{len(found)}/{total} {last.task}: {last.entrant} {final:.3g}, {spent}"


def show(folder: str | Path, console: Console) -> None:
    """Show what a suite found: sentences, then a table of aggregates."""
    content = read_suite_report(folder)
    console.print(heading(content), style="bold", markup=False, highlight=False)
    for sentence in findings(content):
        console.print(f"- {sentence}", markup=False, highlight=False)
    table = plain_table("Interquartile mean of scores, 95 % interval")
    for column in ("optimizer", "training", "validation", "failed"):
        table.add_column(column)
    for cells in aggregate_cells(content):
        table.add_row(*cells[:4])
    console.print(table)
