"""A diagnosis as a table, as JSON and as a figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from l2o.diagnosis.summary import BUDGET, Diagnosis, Measurement, Reference
from l2o.evaluation import plots
from l2o.evaluation.report import environment, plain_table, write_json
from l2o.evaluation.tables import number
from l2o.runs.folder import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

STYLES: Mapping[str, tuple[str, str]] = {
    "full_es": ("#000000", ""),
    "full_grad": ("#777777", ""),
    "pes": ("#d55e00", "o"),
    "nres": ("#0072b2", "s"),
    "es_single": ("#56b4e9", "v"),
    "truncated_es": ("#e69f00", "^"),
    "truncated_grad": ("#009e73", "D"),
    "variance_weighted": ("#cc79a7", "P"),
}
"""Colour (Okabe and Ito) and marker of an estimator."""

WHOLE_RUNS = ("full_es", "full_grad")
"""Estimators without a window."""

OTHER = ("#f0e442", "X")
"""Colour and marker of one that does not come with the package."""


def write_diagnosis(
    folder: str | Path, diagnosis: Diagnosis, *, config: Mapping[str, Any], seconds: float
) -> list[Path]:
    """Write `diagnosis.json` and `diagnosis.png` into a folder, each as a whole or not at all.

    Args:
        folder: Folder to write to; made if there is none.
        diagnosis: The diagnosis.
        config: Settings to record.
        seconds: Seconds that it took.
    """
    content = {
        "config": config,
        "environment": environment(),
        "seconds": seconds,
        "budget": BUDGET,
        **asdict(diagnosis),
    }
    paths = [Path(folder) / "diagnosis.json", Path(folder) / "diagnosis.png"]
    write_json(paths[0], content)
    atomic_write(paths[1], png(diagnosis, f"{config['optimizer']} on {config['task']}"))
    return paths


def png(diagnosis: Diagnosis, title: str) -> bytes:
    """Draw the figure as a PNG file's content: panels over windows and horizons, and bias."""
    rows = diagnosis.measurements
    used = {r.horizon: r for r in diagnosis.references if r.is_used}
    windows = [row.window for row in rows if row.window]
    if not windows:
        panels = [[panel(rows, used, "horizon", "variance", "noise over whole runs")]]
        return plots.image(panels, title=title, has_shared_legend=True)
    longest, shortest = max(row.horizon for row in rows), min(windows)
    by_window = [row for row in rows if row.horizon == longest]
    by_horizon = [row for row in rows if row.window in (None, shortest)]
    whole_runs = f"over whole runs of {longest} steps"
    over_horizons = f"noise over whole runs, window {shortest}"
    one_step = f"noise of one outer step, runs of {longest} steps"
    panels = [
        [
            panel(by_window, used, "window", "variance", f"noise {whole_runs}"),
            panel(by_horizon, used, "horizon", "variance", over_horizons),
        ],
        [
            panel(by_window, used, "window", "step_variance", one_step),
            panel(
                by_window, used, "window", "relative_bias", f"bias {whole_runs}; full: significant"
            ),
        ],
    ]
    return plots.image(panels, title=title, has_shared_legend=True)


def panel(
    rows: Sequence[Measurement],
    references: Mapping[int, Reference],
    x: Literal["window", "horizon"],
    y: Literal["variance", "step_variance", "relative_bias"],
    title: str,
) -> plots.Draw:
    """Draw a curve for each estimator, with 95 % intervals; those of whole runs have no window.

    Args:
        rows: Measurements to draw.
        references: Used references by horizon.
        x: Field along the horizontal axis.
        y: Field along the vertical axis.
        title: Title of the panel.
    """
    places = sorted({place for row in rows if (place := getattr(row, x))})
    names = list(dict.fromkeys(row.estimator for row in rows))

    def draw(axes: "Axes") -> None:
        if y != "relative_bias":
            signal = [references[place if x == "horizon" else rows[0].horizon] for place in places]
            axes.plot(
                places,
                [reference.norm**2 for reference in signal],
                color="#bbbbbb",
                linewidth=5,
                alpha=0.6,
                label="squared norm of the gradient",
            )
            axes.set_yscale("log")
        axes.set_xscale("log")
        for i, name in enumerate(names):
            own = [row for row in rows if row.estimator == name]
            is_flat = x == "window" and name in WHOLE_RUNS
            at = places if is_flat else [getattr(row, x) for row in own]
            values = [interval(row, y) for row in (own * len(places) if is_flat else own)]
            value, low, high = np.array(values, np.float64).T
            color, marker = STYLES.get(name, OTHER)
            marker = marker or "*"
            aside = np.array(at) * 1.025 ** (i - (len(names) - 1) / 2)
            axes.errorbar(
                places if is_flat else aside,
                value,
                None if is_flat else [value - low, high - value],
                color=color,
                linestyle="--" if name in WHOLE_RUNS else "-",
                linewidth=1.2,
                marker="" if is_flat else marker,
                markersize=5,
                markerfacecolor="white" if y == "relative_bias" else color,
                label=name,
            )
            if y == "relative_bias" and not is_flat:
                is_biased = np.array([row.is_biased for row in own])
                axes.plot(
                    aside[is_biased], value[is_biased], marker, color=color, markersize=5, zorder=3
                )
        axes.set_xticks(places, [str(place) for place in places])
        axes.minorticks_off()
        variance, bias = f"variance of {BUDGET:,} inner steps", "bias over |gradient|"
        plots.label(axes, title, f"{x} (inner steps)", bias if y == "relative_bias" else variance)

    return draw


def interval(
    row: Measurement, y: Literal["variance", "step_variance", "relative_bias"]
) -> tuple[float, float, float]:
    """Take a value and its 95 % interval; NaN where it cannot be drawn."""
    if y == "relative_bias":
        half = 1.96 * row.relative_bias_error
        return row.relative_bias, max(row.relative_bias - half, 0.0), row.relative_bias + half
    value, low, high = (getattr(row, name) for name in (y, f"{y}_low", f"{y}_high"))
    return (value, low, high) if value > 0 else (math.nan, math.nan, math.nan)


def diagnosis_table(diagnosis: Diagnosis, horizon: int) -> "Table":
    """Tabulate the measurements at one horizon, for a terminal of 80 columns."""
    rows = [row for row in diagnosis.measurements if row.horizon == horizon]
    (used,) = [r for r in diagnosis.references if r.horizon == horizon and r.is_used]
    table = plain_table(
        f"horizon {horizon}, {used.kind} gradient of norm {number(used.norm)} "
        f"± {number(used.error, 2)}"
    )
    all_valid = all(row.valid == 1 for row in rows)
    table.add_column("estimator", no_wrap=True)
    for column in ("window", "variance", "of a step", "bias", "cosine", "s"):
        table.add_column(column, no_wrap=True, justify="right")
    if not all_valid:
        table.add_column("valid", no_wrap=True, justify="right")
    for row in rows:
        error = number(1.96 * row.relative_bias_error, 2)
        table.add_row(
            row.estimator,
            str(row.window or ""),
            number(relative(row.variance, used)),
            number(relative(row.step_variance, used)),
            f"{number(row.relative_bias, 2)}{'*' if row.is_biased else ''} ±{error}",
            number(row.cosine, 2),
            f"{row.seconds:.2f}",
            *(() if all_valid else (f"{row.valid:.0%}",)),
        )
    return table


def relative(square: float, reference: Reference) -> float:
    """Divide a square by the reference's."""
    return square / reference.norm**2 if reference.norm > 0 else math.nan


NOTE = f"""\
variance: of what {BUDGET:,} inner steps give, over the squared norm of the gradient
of a step: the same, if all of them are one outer step of pairs at random stages
bias: distance of the mean from the gradient, over its norm, less what noise
explains, ± 95 %; * is significant among all rows (5 %). An exact gradient lacks
the smoothing of evolution strategies, which counts as bias then
cosine: of the mean to the gradient
s: for {BUDGET:,} inner steps on one device, without compilation"""
"""What the columns are."""
