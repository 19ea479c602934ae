"""The report of fronts: `pareto.json`, a page with figures, and the points as CSV."""

import csv
import html
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from l2o.evaluation import plots
from l2o.evaluation.front import hypervolumes, not_dominated
from l2o.evaluation.html import document, table
from l2o.evaluation.report import environment, plain_table, write_json
from l2o.evaluation.statistics import Estimate, mean_interval
from l2o.evaluation.tables import interval_text
from l2o.runs.folder import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

NAME = "pareto.json"

COLUMNS = (
    "task",
    "optimizer",
    "hypervolume",
    "the first one's is larger by",
    "points",
    "on the front",
)


class FrontOf(NamedTuple):
    """What was measured on a task.

    Attributes:
        task: Name of the task.
        is_seen: Whether an optimizer was meta-trained on it.
        labels: Name of each point, by optimizer.
        costs: Costs of each optimizer, shape (points, seeds, objectives).
    """

    task: str
    is_seen: bool
    labels: Mapping[str, Sequence[str]]
    costs: Mapping[str, np.ndarray]


def write_front_report(
    folder: str | Path,
    rows: Sequence[FrontOf],
    objectives: Sequence[str],
    reference: Sequence[float] | None,
    *,
    config: Mapping[str, Any],
) -> Path:
    """Write `pareto.json`, `report.html` and `pareto.csv`; returns the path of the page.

    Args:
        folder: Folder, which is made.
        rows: What was measured on each task.
        objectives: Names of the objectives.
        reference: Cost of each objective from which on a point is worth nothing, if it is given.
        config: Settings to show.
    """
    content = {
        "objectives": list(objectives),
        "tasks": [summary(row, reference) for row in rows],
        "config": config,
        "environment": environment(),
    }
    folder = Path(folder)
    write_json(folder / NAME, content)
    content = json.loads((folder / NAME).read_text())
    atomic_write(folder / "pareto.csv", points_as_csv(content).encode())
    figures = [plots.svg(panels(row, objectives)) for row in content["tasks"]]
    atomic_write(folder / "report.html", page(content, figures).encode())
    return folder / "report.html"


def summary(row: FrontOf, reference: Sequence[float] | None) -> dict[str, Any]:
    """Reduce what was measured on a task to JSON: points with intervals, and hypervolumes."""
    volumes, gains = hypervolumes(row.costs, reference)
    means = {name: values.mean(axis=1) for name, values in row.costs.items()}
    together = not_dominated(np.concatenate(list(means.values())))
    ends = np.cumsum([len(points) for points in means.values()])
    on_front = dict(zip(means, np.split(together, ends[:-1]), strict=True))

    def point(name: str, i: int) -> dict[str, Any]:
        estimates = [mean_interval(column) for column in row.costs[name][i].T]
        return {
            "label": row.labels[name][i],
            "costs": [estimate._asdict() for estimate in estimates],
            "is_on_own_front": bool(own[name][i]),
            "is_on_front": bool(on_front[name][i]),
        }

    own = {name: not_dominated(points) for name, points in means.items()}
    return {
        "task": row.task,
        "is_seen": row.is_seen,
        "seeds": next(iter(row.costs.values())).shape[1],
        "optimizers": [
            {
                "name": name,
                "hypervolume": volumes[name]._asdict(),
                "behind_first": gains[name]._asdict() if name in gains else None,
                "points": [point(name, i) for i in range(len(points))],
            }
            for name, points in means.items()
        ],
    }


def cells(content: Mapping[str, Any]) -> list[list[str]]:
    """The table of hypervolumes, a row for each optimizer on each task."""

    def text(estimate: Mapping[str, float] | None) -> str:
        return interval_text(*Estimate(**estimate)) if estimate else ""

    return [
        [
            row["task"] + (" (meta-trained)" if row["is_seen"] else ""),
            entry["name"],
            text(entry["hypervolume"]),
            text(entry["behind_first"]),
            str(len(entry["points"])),
            str(sum(point["is_on_front"] for point in entry["points"])),
        ]
        for row in content["tasks"]
        for entry in row["optimizers"]
    ]


def front_table(content: Mapping[str, Any]) -> "Table":
    """Tabulate hypervolumes for a terminal."""
    found = plain_table("Hypervolume, as a share, with 95 % intervals")
    for column in COLUMNS:
        found.add_column(column)
    for row in cells(content):
        found.add_row(*row)
    return found


def panels(row: Mapping[str, Any], objectives: Sequence[str]) -> list[plots.Draw]:
    """A panel for each two objectives: points with their intervals, and each front as steps."""

    def panel(first: int, second: int) -> plots.Draw:
        def draw(axes: "Axes") -> None:
            palette = (*plots.COLORS["learned"], *plots.COLORS["baseline"])
            for i, entry in enumerate(row["optimizers"]):
                color = palette[i % len(palette)]
                costs = [[p["costs"][k] for p in entry["points"]] for k in (first, second)]
                x, y = ([cost["value"] for cost in column] for column in costs)
                spread = [
                    np.abs([[c["value"] - c["low"], c["high"] - c["value"]] for c in column]).T
                    for column in costs
                ]
                axes.errorbar(
                    x,
                    y,
                    xerr=spread[0],
                    yerr=spread[1],
                    fmt="o",
                    color=color,
                    markersize=4,
                    linewidth=0.8,
                    alpha=0.7,
                )
                own = sorted(
                    (x[j], y[j]) for j, p in enumerate(entry["points"]) if p["is_on_own_front"]
                )
                (line,) = axes.step(*zip(*own, strict=True), where="post", color=color)
                line.set_label(plots.plain(entry["name"]))
            plots.label(axes, row["task"], objectives[first], objectives[second])
            axes.legend(**plots.LEGEND)

        return draw

    return [panel(*pair) for pair in itertools.combinations(range(len(objectives)), 2)]


def points_as_csv(content: Mapping[str, Any]) -> str:
    """All points: costs with the ends of their intervals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    ends = ("value", "low", "high")
    columns = [f"{name}_{end}" for name in content["objectives"] for end in ends]
    writer.writerow(["task", "optimizer", "point", "is_on_front", *columns])
    for row in content["tasks"]:
        for entry in row["optimizers"]:
            for point in entry["points"]:
                values = [cost[end] for cost in point["costs"] for end in ends]
                label = [row["task"], entry["name"], point["label"], int(point["is_on_front"])]
                writer.writerow([*label, *values])
    return buffer.getvalue()


def page(content: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Write the page, which refers to nothing outside itself."""
    objectives = ", ".join(content["objectives"])
    costs = "".join(f"<figure>{figure}</figure>" for figure in figures)
    body = (
        f"<h1>Fronts of {html.escape(objectives)}</h1>"
        "<p>All objectives are costs, lower is better; points are means over seeds with their 95 % "
        "intervals, lines what no other point of the same optimizer dominates. The hypervolume is "
        "what a front dominates of the box from the best cost of anybody in each objective to the "
        "worst, or to the reference that was given, as a share; its interval is over seeds, which "
        f"all optimizers share.</p>{table(COLUMNS, cells(content))}{costs}\n"
    )
    return document("l2o pareto", body, config=content["config"])
