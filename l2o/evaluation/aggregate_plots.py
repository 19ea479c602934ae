"""Panels of aggregates over a suite, for `l2o.evaluation.plots.svg` and `png`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from l2o.evaluation.plots import COLORS, DASHES, LEGEND, Draw, band, label
from l2o.evaluation.statistics import Estimate
from l2o.evaluation.tables import number
from l2o.evaluation.transfer import TransferMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (*COLORS["learned"], *COLORS["baseline"], *COLORS["control"])
"""The first entrant has the color of what is learned."""


def profiles(
    x: Sequence[float] | np.ndarray,
    estimates: Mapping[str, Estimate],
    *,
    title: str = "",
    x_label: str = "score τ",
    y_label: str = "fraction of runs with score > τ",
    is_log: bool = False,
) -> Draw:
    """Draw the performance profile of every optimizer, in a band between the ends of its interval.

    Args:
        x: Thresholds or ratios, shape (thresholds,).
        estimates: Profile of each optimizer with its band, each of shape (thresholds,).
        title: Title of the panel.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        is_log: Whether the horizontal axis is logarithmic, as ratios of steps ask for.
    """

    def draw(axes: "Axes") -> None:
        for i, (name, (value, low, high)) in enumerate(estimates.items()):
            values = {"name": name, "median": value, "low": low, "high": high}
            dashes = DASHES[i // len(PALETTE) % len(DASHES)]
            band(axes, list(x), values, PALETTE[i % len(PALETTE)], dashes)
        axes.set_ylim(-0.02, 1.02)
        if is_log:
            axes.set_xscale("log")
        label(axes, title, x_label, y_label)
        axes.legend(**LEGEND)

    return draw


def intervals(
    estimates: Mapping[str, Estimate],
    *,
    title: str = "",
    x_label: str = "interquartile mean of scores",
    reference: float | None = None,
) -> Draw:
    """Draw one number of every optimizer as a dot in its interval, the first at the top.

    Args:
        estimates: Number of each optimizer with its interval.
        title: Title of the panel.
        x_label: Name of the number.
        reference: Where to draw a vertical line, such as a draw.
    """

    def draw(axes: "Axes") -> None:
        for i, (value, low, high) in enumerate(estimates.values()):
            color = PALETTE[i % len(PALETTE)]
            axes.plot(
                [low, high], [i, i], color=color, linewidth=6, alpha=0.3, solid_capstyle="butt"
            )
            axes.plot([value], [i], "o", color=color)
        if reference is not None:
            axes.axvline(reference, color=COLORS["control"][0], linestyle="--", linewidth=1)
        name_ticks(axes, "y", list(estimates))
        axes.set_ylim(len(estimates) - 0.5, -0.5)
        label(axes, title, x_label, "")

    return draw


def improvements(name: str, estimates: Mapping[str, Estimate], *, title: str = "") -> Draw:
    """Draw the probability that an optimizer improves on each of its rivals.

    Args:
        name: Name of the optimizer.
        estimates: Probability of improvement over each rival with its interval.
        title: Title of the panel.
    """
    panel = intervals(estimates, title=title, x_label=f"P({literal(name)} > rival)", reference=0.5)

    def draw(axes: "Axes") -> None:
        panel(axes)
        axes.set_xlim(-0.02, 1.02)

    return draw


def heat_map(
    matrix: TransferMatrix, *, title: str = "", value_label: str = "interquartile mean"
) -> Draw:
    """Draw what was trained on in rows and tested on in columns, with values and intervals.

    Args:
        matrix: Table to draw; a cell without results stays empty.
        title: Title of the panel.
        value_label: Name of the numbers, beside the scale of colors.
    """

    def draw(axes: "Axes") -> None:
        value, low, high = (np.asarray(x, np.float64) for x in matrix.estimate)
        image = axes.imshow(value, cmap="cividis", aspect="auto")  # told apart by all readers
        shades = np.asarray(image.norm(value), np.float64)
        for i, j in np.argwhere(np.isfinite(value)):
            middle, *ends = (float(x[i, j]) for x in (value, low, high))
            axes.text(
                j,
                i,
                f"{number(middle, 2)}\n[{number(ends[0], 2)}, {number(ends[1], 2)}]",
                color="white" if shades[i, j] < 0.5 else "black",
                ha="center",
                va="center",
                fontsize="x-small",
            )
        name_ticks(axes, "x", matrix.tested_on)
        name_ticks(axes, "y", matrix.trained_on)
        label(axes, title, "tested on", "meta-trained on")
        axes.grid(visible=False)
        axes.figure.colorbar(image, ax=axes, label=literal(value_label))

    return draw


def name_ticks(axes: "Axes", axis: str, names: Sequence[str]) -> None:
    """Name the places 0, 1, ... of an axis."""
    shown = [literal(name) for name in names]
    axes.set(**{f"{axis}ticks": range(len(names)), f"{axis}ticklabels": shown})


def literal(text: str) -> str:
    """Escape dollar signs, of which an even number would start mathematics."""
    return text.replace("$", r"\$")
