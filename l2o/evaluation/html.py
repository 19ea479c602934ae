"""The HTML page of a report, from the content of `report.json`."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from l2o.evaluation import tables
from l2o.evaluation.baselines import BASELINES


def page(content: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Write the report as one HTML file that refers to nothing outside itself."""
    rows = content["comparisons"]
    losses = [sentence for row in rows for sentence in tables.shortfalls(row)]
    if rows and not losses:
        losses = ["On none of these tasks does the learned optimizer end above a rival."]
    names = dict.fromkeys(rival["name"] for row in rows for rival in row["baselines"])
    known = [name for name in names if name in BASELINES]
    optimizers = dict.fromkeys(BASELINES[name].optimizer for name in known)
    meanings = [(name, BASELINES[name].description) for name in known]
    return TEMPLATE.format(
        baselines=html.escape(" and ".join(optimizers) or "rivals"),
        losses="".join(f"<p class='note'>{html.escape(text)}</p>" for text in losses)
        or "<p>No comparison has been run.</p>",
        comparisons=table(tables.COMPARISON, [tables.comparison_cells(row) for row in rows]),
        figures="".join(f"<figure>{figure}</figure>" for figure in figures),
        entrants=table(
            tables.ENTRANTS, [cells for row in rows for cells in tables.entrant_cells(row)]
        ),
        tests=table(
            ["task", "test split, at the end", "learned", *first_control(rows), "best baseline"],
            [cells for row in rows for cells in tables.test_cells(row)],
        ),
        chosen=table(tables.CHOSEN, [cells for row in rows for cells in tables.chosen_cells(row)]),
        definitions="".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>"
            for k, v in (*tables.DEFINITIONS.items(), *meanings)
        ),
        environment=table(["", ""], [[k, str(v)] for k, v in content["environment"].items()]),
        config=html.escape(json.dumps(content["config"], indent=1, ensure_ascii=False)),
    )


def first_control(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the control that the tests are shown of, if there is one."""
    return [control["name"] for row in rows[:1] for control in row["controls"][:1]]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write an HTML table; every cell is escaped."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


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
<h1>Learned optimizer beside {baselines}</h1>
{losses}
<h2>Comparison</h2>
{comparisons}
<h2>Curves</h2>
<p>Lines are medians over seeds, bands the quartiles.</p>
{figures}
<h2>Every optimizer</h2>
{entrants}
{tests}
{chosen}
<h2>What the columns mean</h2>
<dl>{definitions}</dl>
<h2>Environment</h2>
{environment}
<h2>Configuration</h2>
<pre>{config}</pre>
</body>
</html>
"""
