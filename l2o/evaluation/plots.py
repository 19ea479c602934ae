"""Figures of a report, drawn with matplotlib without its global state."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "learned": ("#0072b2",),
    "baseline": ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    "control": ("#777777",),
}
"""Told apart by colour-blind readers too (Okabe and Ito)."""

DASHES = ("-", "--", "-.", ":")

LEGEND: Mapping[str, Any] = {"frameon": False, "fontsize": "small"}

Draw = Callable[["Axes"], None]


def training_curves(
    task: str, curves: Mapping[str, Any], *, y_label: str = "training loss (fixed batches)"
) -> Draw:
    """Draw the median probe loss of every entrant, with its quartiles as a band."""

    def draw(axes: "Axes") -> None:
        seen: dict[str, int] = {}
        for entrant in curves["entrants"]:
            role = entrant["role"]
            index = seen[role] = seen.get(role, -1) + 1
            color = COLORS[role][index % len(COLORS[role])]
            band(axes, curves["steps"], entrant, color, DASHES[index % len(DASHES)])
        axes.set_yscale("log")
        label(axes, task, "inner step", y_label)
        axes.legend(**LEGEND)

    return draw


def learning_rate_grid(grids: Sequence[Mapping[str, Any]]) -> Draw:
    """Draw the final loss against the learning rate, with the rate chosen marked."""

    def draw(axes: "Axes") -> None:
        for i, grid in enumerate(grids):
            color = COLORS["baseline"][i % len(COLORS["baseline"])]
            band(axes, grid["learning_rates"], grid, color, "-", marker="o")
            best = grid["learning_rates"].index(grid["chosen"])
            axes.plot(
                [grid["chosen"]], [grid["median"][best]], "*", color=color, markersize=14, zorder=4
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        label(axes, "tuning: ★ chosen", "learning rate", "final training loss")
        axes.legend(**LEGEND)

    return draw


def meta_training(metrics: Sequence[Mapping[str, Any]]) -> Draw:
    """Draw the meta-loss, and the finite fraction on an axis to the right."""

    def draw(axes: "Axes") -> None:
        steps = [row["step"] for row in metrics]
        for name, color, target in (
            ("meta_loss", COLORS["learned"][0], axes),
            ("finite", COLORS["control"][0], axes.twinx()),
        ):
            values = np.array([row.get(name) for row in metrics], np.float64)
            target.plot(steps, values, color=color, linewidth=1.2)
            target.set_ylabel(name.replace("_", "-"), color=color)
            if name == "finite":
                target.set_ylim(-0.02, 1.05)
        axes.set_title("meta-training")
        axes.set_xlabel("outer step")
        axes.grid(alpha=0.25)

    return draw


def validation(rows: Sequence[Mapping[str, Any]]) -> Draw:
    """Draw the validation score of each task and their mean, whose first maximum is marked."""

    def draw(axes: "Axes") -> None:
        steps = [row["step"] for row in rows]
        tasks = [name.removesuffix("/score") for name in rows[0] if name.endswith("/score")]
        for i, task in enumerate(tasks):
            color = COLORS["baseline"][i % len(COLORS["baseline"])]
            dashes = DASHES[i // len(COLORS["baseline"]) % len(DASHES)]
            scores = [row[f"{task}/score"] for row in rows]
            (line,) = axes.plot(steps, scores, dashes, color=color, linewidth=1.0)
            line.set_label(plain(task))
        mean, color = [row["score"] for row in rows], COLORS["learned"][0]
        axes.plot(steps, mean, ".-", color=color, linewidth=2.0, label="mean")
        best = int(np.argmax(mean))
        if mean[best] > 0.0:  # otherwise none is kept
            axes.plot(steps[best], mean[best], "*", color=color, markersize=14, zorder=4)
        label(axes, "validation: ★ best", "outer step", "score")
        axes.legend(**LEGEND)

    return draw


def band(
    axes: "Axes",
    x: Sequence[float],
    values: Mapping[str, Any],
    color: str,
    dashes: str,
    marker: str = "",
) -> None:
    """Draw a line at the median in a band from the lower to the upper quartile."""
    # Zero cannot be drawn on a logarithmic axis, and `None` stands for what is not finite.
    low, median, high = (
        np.maximum(np.array(values[k], np.float64), 1e-30) for k in ("low", "median", "high")
    )
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    (line,) = axes.plot(x, median, color=color, linestyle=dashes, marker=marker, markersize=4)
    # Set here, because a label that starts with "_" given to `plot` would hide the line.
    line.set_label(plain(values["name"]))


def plain(name: str) -> str:
    """A name as the text of a legend, which neither is mathematics nor hides a line."""
    name = name.replace("$", r"\$")  # an even number of dollar signs would start mathematics
    return name if not name.startswith("_") else f"\u200b{name}"


def label(axes: "Axes", title: str, x: str, y: str) -> None:
    """Set the title, the names of the axes and a grid."""
    axes.set_title(title.replace("$", r"\$"))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)


def svg(panels: Sequence[Draw]) -> str:
    """Draw panels side by side, as an `<svg>` element for HTML that refers to nothing outside."""
    buffer = io.StringIO()
    save([panels], buffer, "svg")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)


def save(
    rows: Sequence[Sequence[Draw]],
    target: io.StringIO | io.BytesIO,
    kind: str,
    *,
    title: str = "",
    has_shared_legend: bool = False,
) -> None:
    """Draw rows of panels and write them to a file.

    Args:
        rows: Rows of panels.
        target: File to write to.
        kind: Format, "svg", "png" or "pdf".
        title: Title above all panels.
        has_shared_legend: Whether the first panel's legend, which holds for all, goes below them.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "l2o",
            "axes.spines.top": False,
            "font.size": 10,
        }
    ):
        figure = Figure(figsize=(5.2 * columns, 3.6 * len(rows)), layout="constrained")
        grid = figure.add_gridspec(len(rows), columns)
        for i, row in enumerate(rows):
            for j, draw in enumerate(row):
                place = grid[i, j:] if j == len(row) - 1 else grid[i, j]
                draw(figure.add_subplot(place))
        if title:
            figure.suptitle(title.replace("$", r"\$"))
        if has_shared_legend:
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(),
                loc="outside lower center",
                ncols=4,
                frameon=False,
            )
        undated = {"CreationDate": None} if kind == "pdf" else None  # equal figures, equal files
        figure.savefig(target, format=kind, dpi=100, metadata=undated)


def image(
    rows: Sequence[Sequence[Draw]],
    kind: Literal["png", "pdf"] = "png",
    *,
    title: str = "",
    has_shared_legend: bool = False,
) -> bytes:
    """Draw rows of panels as the content of a PNG or PDF file; see `save`."""
    buffer = io.BytesIO()
    save(rows, buffer, kind, title=title, has_shared_legend=has_shared_legend)
    return buffer.getvalue()
