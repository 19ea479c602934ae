"""What a policy did to hyperparameters, as files: JSON, CSV, a figure and a page."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2o.evaluation import plots
from l2o.evaluation.html import document, table
from l2o.evaluation.report import environment, plain_table, write_json
from l2o.evaluation.schedule import FoundSchedule
from l2o.evaluation.statistics import Estimate, Interval, median_interval
from l2o.evaluation.tables import interval_text
from l2o.evaluation.training import Curves
from l2o.runs.folder import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

COLUMNS = ("task", "policy", "schedule", "the schedule's loss is times")


def write_schedules(
    folder: str | Path, found: Sequence[FoundSchedule], *, config: Mapping[str, Any]
) -> Path:
    """Write `TASK.json`, `TASK.csv` and `TASK.png` of each task, and a page of all.

    Args:
        folder: Folder, which is made.
        found: Schedule of each task.
        config: Settings to show.

    Returns:
        Path of the page.
    """
    folder = Path(folder)
    for one in found:
        write_json(folder / f"{one.task}.json", summary(one, config))
        atomic_write(folder / f"{one.task}.csv", as_csv(one).encode())
        atomic_write(folder / f"{one.task}.png", plots.image([panels(one)]))
    atomic_write(folder / "report.html", page(found, config).encode())
    return folder / "report.html"


def summary(one: FoundSchedule, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `l2o.load_schedule` reads, and what following it costs."""
    cost = one.cost
    return {
        "base": one.base.name,
        "base_sha256": one.base.sha256,
        "task": one.task,
        "tensors": one.tensors,
        "hyperparameters": dict(one.values),
        "policy_final_loss": final_loss(one.policy)._asdict(),
        "schedule_final_loss": final_loss(one.frozen)._asdict(),
        "cost": None if cost is None else cost._asdict(),
        "config": config,
        "environment": environment(),
    }


def final_loss(curves: Curves) -> Interval:
    """Median over starts of the final loss, with its interval."""
    return median_interval(curves.final_loss)


def columns_of(one: FoundSchedule) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The schedule and what was recorded, shapes (horizon,) and (seeds, horizon), by column."""
    found = {}
    for name, values in one.values.items():
        rows = one.recorded[name]
        if values.ndim == 1:
            found[name] = (values, rows)
            continue
        for i, tensor in enumerate(one.tensors):
            found[f"{name}/{tensor}"] = (values[:, i], rows[:, :, i])
    return found


def as_csv(one: FoundSchedule) -> str:
    """A row for each inner step: each hyperparameter, with its quartiles over seeds."""
    columns: dict[str, np.ndarray] = {}
    for name, (values, rows) in columns_of(one).items():
        columns[name] = values
        columns[f"{name}_low"], columns[f"{name}_high"] = np.nanquantile(rows, (0.25, 0.75), axis=0)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["step", *columns])
    for step, row in enumerate(zip(*columns.values(), strict=True)):
        writer.writerow([step, *(f"{float(value):.8g}" for value in row)])
    return text.getvalue()


def panels(one: FoundSchedule) -> list[plots.Draw]:
    """A panel for each hyperparameter, with quartiles over seeds; then one of losses."""
    columns = columns_of(one)

    def hyperparameter(name: str) -> plots.Draw:
        def draw(axes: "Axes") -> None:
            palette = (*plots.COLORS["learned"], *plots.COLORS["baseline"])
            own = [column for column in columns if column.split("/")[0] == name]
            for i, column in enumerate(own):
                values, rows = columns[column]
                low, high = np.nanquantile(rows, (0.25, 0.75), axis=0)
                line = {"name": column, "low": low, "median": values, "high": high}
                dashes = plots.DASHES[i // len(palette) % len(plots.DASHES)]
                plots.band(axes, range(len(values)), line, palette[i % len(palette)], dashes)
            if name == "learning_rate":
                axes.set_yscale("log")
            plots.label(axes, one.task, "inner step", name)
            axes.legend(**plots.LEGEND)

        return draw

    def entrant(name: str, role: str, curves: Curves) -> dict[str, Any]:
        low, median, high = np.quantile(curves.probe_loss, (0.25, 0.5, 0.75), axis=0)
        return {"name": name, "role": role, "low": low, "median": median, "high": high}

    entrants = [
        entrant("policy", "learned", one.policy),
        entrant("schedule", "baseline", one.frozen),
    ]
    losses = {"steps": one.policy.steps, "entrants": entrants}
    return [*map(hyperparameter, one.values), plots.training_curves(one.task, losses)]


def cells(found: Sequence[FoundSchedule]) -> list[list[str]]:
    """The table of what the schedules cost."""

    def text(estimate: Estimate | Interval | None) -> str:
        return "n/a" if estimate is None else interval_text(*estimate)

    return [
        [one.task, text(final_loss(one.policy)), text(final_loss(one.frozen)), text(one.cost)]
        for one in found
    ]


def cost_table(found: Sequence[FoundSchedule]) -> "Table":
    """Tabulate for a terminal what the schedules cost."""
    result = plain_table("Final training loss of the policy and of its mean schedule, 95 %")
    for column in COLUMNS:
        result.add_column(column)
    for row in cells(found):
        result.add_row(*row)
    return result


def page(found: Sequence[FoundSchedule], config: Mapping[str, Any]) -> str:
    """Write the page, which refers to nothing outside itself."""
    body = BODY.format(
        costs=table(COLUMNS, cells(found)),
        figures="".join(f"<figure>{plots.svg(panels(one))}</figure>" for one in found),
    )
    return document("l2o schedule", body, environment=environment(), config=config)


BODY = """<h1>What a policy did to hyperparameters</h1>
{costs}
<p>A schedule is the mean over starts of what the policy did, on the scale on which it changes
things: rates have their geometric mean. Losses are those of other starts, medians with intervals;
the ratio is the geometric mean over these, start by start.</p>
<h2>Curves</h2>
<p>Lines of hyperparameters are the schedule, bands the quartiles over starts.</p>
{figures}
"""
