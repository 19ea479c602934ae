"""The HTML page of a report, from the content of `report.json`."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from l2o.evaluation.baselines import BASELINES, OPTIMIZERS

DEFINITIONS = {
    "task": "What was trained. “meta-trained” marks a task that the learned optimizer was "
    "meta-trained on: one of the same family, data and shapes, whatever its instances.",
    "steps": "Inner steps of each training run, and the horizon the optimizers were told.",
    "seeds": "Training runs of each optimizer; a seed's instance, initial parameters and batches "
    "are the same for all of them, and none was used in meta-training or in tuning.",
    "learned": "Final loss of the learned optimizer: the mean training loss after the last step "
    "on eight fixed training batches. Medians are over seeds; brackets hold the 95 % bootstrap "
    "interval of the median. A diverged run counts as the task's loss cap, and is never dropped.",
    "best baseline": "The baseline with the lowest median final loss on tuning seeds, at the best "
    "of a grid of learning rates. Rates are tuned for each task on "
    "as many seeds as are reported on, but other ones. “edge” marks a rate at the end of "
    "the grid, beyond which a better one may lie.",
    "baseline": "Final loss of that baseline, on the same seeds as the learned optimizer.",
    "speed-up": "With L a baseline's final loss on a seed: the first step at which the baseline "
    "is at or below L, over the first step at which the learned optimizer is, on the same seed, "
    "interpolating the logarithm of the loss between probes. 1 is a draw; 0 means that L was never "
    "reached. Counts of steps are at least 1, so a baseline that ends no lower than it began "
    "is a draw.",
    "diverged": "Fraction of the learned optimizer's runs that end with a loss that is not finite "
    "or is above the task's loss cap.",
    "time ratio": "Wall-clock seconds per inner step of the learned optimizer over those of the "
    "baseline, with all seeds run together, without compilation. The speed-up divided by it is the "
    "speed-up in time.",
}
"""Meaning of each column of the comparison table."""


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; "n/a" for one that is not finite."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def interval_text(middle: float, low: float, high: float, digits: int = 3) -> str:
    """Format a median and its interval."""
    return f"{number(middle, digits)} [{number(low, digits)}, {number(high, digits)}]"


def bracketed(row: Mapping[str, Any], name: str) -> str:
    """Format a field of a row and its interval."""
    values = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
    return "n/a" if values[0] is None else interval_text(*values)


def cells(row: Mapping[str, Any]) -> list[str]:
    """Format a comparison, in the order of `DEFINITIONS`."""
    at_edge = any(b["at_grid_edge"] and b["name"] == row["best_baseline"] for b in row["baselines"])
    ours, theirs = row["learned_seconds_per_step"], row["baseline_seconds_per_step"]
    return [
        row["task"] + (" (meta-trained)" if row["seen"] else ""),
        str(row["steps"]),
        str(row["num_seeds"]),
        bracketed(row, "learned_final_loss"),
        row["best_baseline"] + (" (edge)" if at_edge else ""),
        bracketed(row, "best_baseline_final_loss"),
        bracketed(row, "speedup"),
        f"{row['diverged']:.0%}",
        number(ours / theirs, 2) if ours and theirs else "n/a",
    ]


def shortfalls(row: Mapping[str, Any]) -> list[str]:
    """Write a sentence for every entrant that ends lower than the learned optimizer."""
    ours = row["learned_final_loss"]
    return [
        f"On {row['task']} the learned optimizer loses to {other['name']}: its median final loss "
        f"is {number(ours)}, against {number(other['final_loss'])}."
        for other in (*row["baselines"], *row["controls"])
        if other["final_loss"] < ours
    ]


def page(content: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Write the report as one HTML file that refers to nothing outside itself."""
    rows = content["comparisons"]
    losses = [sentence for row in rows for sentence in shortfalls(row)]
    if rows and not losses:
        losses = ["On none of these tasks does the learned optimizer end above an entrant."]
    entrants = [
        [
            row["task"],
            other["name"] + (" (edge)" if other.get("at_grid_edge") else ""),
            bracketed(other, "final_loss"),
            bracketed(other, "speedup"),
            f"{other['diverged']:.0%}",
            number(1e6 * (other["seconds_per_step"] or math.nan)),
        ]
        for row in rows
        for other in (own_entry(row), *row["baselines"], *row["controls"])
    ]
    tests = [
        [
            row["task"],
            k.removeprefix("learned_test_"),
            number(v),
            number(row[f"baseline_test_{k[13:]}"]),
        ]
        for row in rows
        for k, v in row.items()
        if k.startswith("learned_test_")
    ]
    names = dict.fromkeys(grid["name"] for grids in content["grids"] for grid in grids)
    optimizers = dict.fromkeys(OPTIMIZERS.get(name, name) for name in names)
    meanings = [(k, BASELINES[k].__doc__ or "") for k in names if k in BASELINES]
    return TEMPLATE.format(
        baselines=html.escape(" and ".join(optimizers) or "baselines"),
        losses="".join(f"<p class='note'>{html.escape(text)}</p>" for text in losses)
        or "<p>No comparison has been run.</p>",
        comparisons=table(list(DEFINITIONS), [cells(row) for row in rows]),
        figures="".join(f"<figure>{figure}</figure>" for figure in figures),
        entrants=table(
            ["task", "optimizer", "final loss", "speed-up over it", "diverged", "µs / step"],
            entrants,
        ),
        tests=table(["task", "test split, at the end", "learned", "best baseline"], tests),
        definitions="".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>"
            for k, v in (*DEFINITIONS.items(), *meanings)
        ),
        environment=table(["", ""], [[k, str(v)] for k, v in content["environment"].items()]),
        config=html.escape(json.dumps(content["config"], indent=1, ensure_ascii=False)),
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write an HTML table; every cell is escaped."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def own_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """Make the learned optimizer's entry among the entrants, without a speed-up over itself."""
    nothing = {f"speedup{end}": None for end in ("", "_low", "_high")}
    loss = {f"final_loss{end}": row[f"learned_final_loss{end}"] for end in ("", "_low", "_high")}
    return {
        "name": "learned",
        "diverged": row["diverged"],
        "seconds_per_step": row["learned_seconds_per_step"],
        **loss,
        **nothing,
    }


TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>l2o report</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto;
  padding: 0 1em; }}
h1, h2 {{ font-weight: 600; }} h2 {{ margin-top: 2em; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ text-align: left; padding: .35em .8em; border-bottom: 1px solid #ddd; }}
th {{ font-weight: 600; white-space: nowrap; }} td {{ font-variant-numeric: tabular-nums; }}
figure {{ margin: 1em 0; }} figure svg {{ width: 100%; height: auto; }}
.note {{ border-left: 3px solid #d55e00; padding-left: .8em; margin: .4em 0; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 .6em 1.2em; }}
pre {{ background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 12px; }}
</style>
</head>
<body>
<h1>Learned optimizer against tuned {baselines}</h1>
{losses}
<h2>Comparison</h2>
{comparisons}
<h2>Curves</h2>
<p>Lines are medians over seeds, bands the quartiles.</p>
{figures}
<h2>Every optimizer</h2>
{entrants}
{tests}
<h2>What the columns mean</h2>
<dl>{definitions}</dl>
<h2>Environment</h2>
{environment}
<h2>Configuration</h2>
<pre>{config}</pre>
</body>
</html>
"""
