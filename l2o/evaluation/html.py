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
    losses = "".join(
        f"<p class='note'>{html.escape(text)}</p>"
        for row in rows
        for text in tables.shortfalls(row)
    )
    if not losses:
        losses = (
            "<p class='good'>On none of these tasks does the learned optimizer end above a rival."
            "</p>"
            if rows
            else "<p>No comparison has been run.</p>"
        )
    names = dict.fromkeys(rival["name"] for row in rows for rival in row["baselines"])
    known = [name for name in names if name in BASELINES]
    optimizers = dict.fromkeys(BASELINES[name].optimizer for name in known)
    meanings = [(name, BASELINES[name].description) for name in known]
    body = BODY.format(
        baselines=html.escape(" and ".join(optimizers) or "rivals"),
        losses=losses,
        about=html.escape(about(content)),
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
    )
    return document(
        "l2o report", body, environment=content["environment"], config=content["config"]
    )


def about(content: Mapping[str, Any]) -> str:
    """Which run it is of, when it was written, and how long meta-training took."""
    parts = [content.get("name"), content.get("written"), f"l2o {content['environment']['l2o']}"]
    seconds = content.get("compute_seconds")
    if seconds:
        parts.append(f"meta-trained for {seconds / 60:,.1f} minutes")
    return ", ".join(part for part in parts if part)


def first_control(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the control that the tests are shown of, if there is one."""
    return [control["name"] for row in rows[:1] for control in row["controls"][:1]]


def document(
    title: str,
    body: str,
    *,
    environment: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    """Write a whole page, which refers to nothing outside itself.

    Args:
        title: Title of the page.
        body: What it shows, as HTML.
        environment: Versions and machine, shown below; nothing if None.
        config: JSON-able settings, shown last; nothing if None.
    """
    if environment is not None:
        body += "<h2>Environment</h2>\n"
        body += table(["", ""], [[k, str(v)] for k, v in environment.items()]) + "\n"
    if config is not None:
        shown = json.dumps(dict(config), indent=1, ensure_ascii=False)
        body += f"<h2>Configuration</h2>\n<pre>{html.escape(shown)}</pre>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
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


STYLE = """
:root { color-scheme: light dark; --line: #ccc; --faint: #f4f4f4; --note: #d55e00;
  --good: #009e73; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --faint: #222; --note: #e69f00;
  --good: #56b4e9; } }
body { font-family: system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em;
  line-height: 1.45; }
h1 { font-size: 1.5em; }
.note, .good { border-left: 3px solid var(--note); padding-left: .8em; margin: .4em 0; }
.good { border-color: var(--good); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .7em; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
th { background: var(--faint); cursor: pointer; }
figure { margin: 1em 0; background: #fff; border-radius: 4px; overflow-x: auto; }
figure svg { width: 100%; min-width: 44em; height: auto; }
dt { font-weight: 600; } dd { margin: 0 0 .6em 1.2em; }
pre { background: var(--faint); padding: 1em; overflow-x: auto; font-size: 12px; }
"""
"""Of all pages, in light and dark, on wide screens and narrow ones."""

BODY = """<h1>Learned optimizer beside {baselines}</h1>
<p>{about}</p>
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
"""
