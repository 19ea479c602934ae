"""`report.json` and its renderings: what was compared with what, and how it came out."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from l2o.evaluation import plots
from l2o.evaluation.compare import Comparison
from l2o.evaluation.html import page
from l2o.evaluation.tables import COMPARISON, comparison_cells, label, mark, markdown, number
from l2o.evaluation.validation import best_row
from l2o.runs.folder import atomic_write
from l2o.runs.provenance import provenance

if TYPE_CHECKING:
    from rich.table import Table


def environment() -> dict[str, Any]:
    """Versions, revision and devices that figures were computed with."""
    found = provenance()
    del found["modules"]
    return {
        **found,
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "num_devices": jax.device_count(),
    }


def write_report(
    folder: str | Path,
    comparisons: Sequence[Comparison],
    *,
    config: Mapping[str, Any] | None = None,
    png: bool = False,
) -> dict[str, Path]:
    """Write `report.json`, `report.html`, `report.md` (and `report.png`) into a run folder.

    Each file is replaced as a whole or not at all.

    Args:
        folder: Run folder; its `metrics.jsonl`, if any, gives the meta-training curve.
        comparisons: Comparison on each task.
        config: Settings to show.
        png: Whether to draw the figures into a `report.png`, too.

    Returns:
        Paths by file name.
    """
    path = Path(folder) / "report.json"
    write_json(
        path,
        {
            "name": Path(folder).resolve().name,
            "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "compute_seconds": sum(
                line.get("seconds") or 0.0 for line in read_metrics(Path(folder))
            ),
            "comparisons": [c.summary for c in comparisons],
            "config": config or {},
            "environment": environment(),
            "metrics": last_metrics(read_metrics(Path(folder))),
            "validation": best_row(read_metrics(Path(folder), "validation", "score")) or {},
            "curves": [c.curves for c in comparisons],
            "grids": [c.grids for c in comparisons],
        },
    )
    return {path.name: path, **render_report(folder, png=png)}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON, as a whole or not at all, into a folder that is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(strict(content), indent=1, allow_nan=False).encode())


def render_report(folder: str | Path, *, png: bool = False) -> dict[str, Path]:
    """Make `report.html`, `report.md` (and `report.png`) from a run folder's `report.json`.

    Returns:
        Paths by file name.

    Raises:
        ValueError: If there is no `report.json`, or it is not a report.
    """
    content = read_report(folder)
    try:
        rows = figures(
            content, read_metrics(Path(folder)), read_metrics(Path(folder), "validation", "score")
        )
        files = {
            "report.html": page(content, [plots.svg(row) for row in rows]).encode(),
            "report.md": markdown(content["comparisons"]).encode(),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`report.json` must hold a report; got {Path(folder) / 'report.json'}, in which "
            f"{error} is missing or of another type. Run `l2o evaluate` again."
        ) from error
    if png and rows:
        files["report.png"] = plots.image(rows)
    for name, data in files.items():
        atomic_write(Path(folder) / name, data)
    return {name: Path(folder) / name for name in files}


def read_report(folder: str | Path) -> dict[str, Any]:
    """Read a run folder's `report.json`.

    Raises:
        ValueError: If there is none, or it is not a report.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise ValueError(
            f"`run` must be a folder with a report.json; got {folder}. "
            f"Try l2o evaluate ... --out {folder}."
        )
    try:
        content = json.loads(path.read_text())
        missing = {"comparisons", "config", "environment", "curves", "grids"} - set(content)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`report.json` must hold a report; got {path}, which cannot be read. "
            "Run `l2o evaluate` again."
        ) from error
    if missing:
        raise ValueError(
            f"`report.json` must hold a report; got {path} without {', '.join(sorted(missing))}. "
            "Run `l2o evaluate` again."
        )
    return content


def figures(
    content: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]] = (),
) -> list[list[plots.Draw]]:
    """Make rows of panels: two for each task, one if nothing was tuned; then meta-training."""
    rows = []
    for row, curves, grids in zip(
        content["comparisons"], content["curves"], content["grids"], strict=True
    ):
        title = f"{row['task']}, {row['steps']} steps"
        shown = {**curves, "entrants": marked(curves["entrants"], row)}
        panels = [plots.training_curves(title, shown)]
        if grids:
            panels.append(plots.learning_rate_grid(marked(grids, row)))
        rows.append(panels)
    last = [plots.meta_training(metrics)] if metrics else []
    last += [plots.validation(validation)] if validation else []
    return [*rows, last] if last else rows


def marked(
    entrants: Sequence[Mapping[str, Any]], row: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Put a rival's mark behind its name, for the legend of a figure."""
    marks = {rival["name"]: mark(rival) for rival in (*row["controls"], *row["baselines"])}
    return [{**e, "name": e["name"] + marks.get(e["name"], "")} for e in entrants]


def read_metrics(
    folder: Path, name: str = "metrics", field: str = "meta_loss"
) -> list[dict[str, Any]]:
    """Read the rows of `metrics.jsonl` that have a meta-loss, without an unfinished line.

    Or those of another such file that have another field.
    """
    path = folder / f"{name}.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and field in row and "step" in row:
            rows.append(row)
    return rows


def last_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Take the first and last step of meta-training in numbers; empty if there was none."""
    if not rows:
        return {}
    ends = {"first": rows[0], "last": rows[-1]}
    return {k: {m: row.get(m) for m in ("step", "meta_loss", "finite")} for k, row in ends.items()}


def strict(value: Any) -> Any:
    """Convert a value to what JSON knows, with `None` for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(v) for v in value]
    if hasattr(value, "tolist"):
        return strict(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def plain_table(title: str) -> "Table":
    """Make an empty table for the terminal."""
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> "Table":
    """Tabulate `report.json`'s "comparisons" for a terminal of 80 columns."""
    from rich.text import Text

    def two_lines(text: str, second: str = "[") -> str:
        return text.replace(f" {second}", f"\n{second}", 1)

    table = plain_table("Final training loss and speed-up: median, 95 % interval")
    for column in ("task", "learned", "best baseline", "speed-up"):
        table.add_column(column, overflow="fold")
    for row in comparisons:
        by_name = dict(zip(COMPARISON, comparison_cells(row), strict=True))
        controls = [f"{label(c)}:\n{number(c['final_loss'])}" for c in row["controls"]]
        lines = (
            f"{two_lines(by_name['task'], '(')}\n{row['steps']} steps, {row['num_seeds']} seeds\n"
            f"{row['learned_diverged']:.0%} diverged",
            "\n".join([two_lines(by_name["learned"]), *controls]),
            f"{by_name['best baseline']}\n{two_lines(by_name['baseline'])}",
            f"{two_lines(by_name['speed-up'])}\n{by_name['reached']}",
        )
        table.add_row(*map(Text, lines))
    return table
