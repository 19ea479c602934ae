"""The HTML pages of a suite's report, which refer to nothing outside their folder."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from l2o.evaluation.html import STYLE, table
from l2o.evaluation.tables import number
from l2o.suite.tables import (
    AGGREGATES,
    DEFINITIONS,
    RESULTS,
    aggregate_cells,
    findings,
    heading,
    left_out,
    result_cells,
    setting_cells,
)

SUITE = ("task", "model", "beyond usual training", "parameters", "steps", "solved at")
"""Columns of the table of tasks."""


def index(content: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Write the first page: what was found, aggregates, figures, every result, and the tasks."""
    rows = content["rows"]
    return page(
        heading(content),
        "".join(f"<p class='note'>{html.escape(text)}</p>" for text in findings(content)),
        section("Aggregates", table(AGGREGATES, aggregate_cells(content))),
        incomplete(content),
        "".join(f"<figure>{figure}</figure>" for figure in figures),
        section(
            "Every optimizer on every task",
            "<p>A click on a heading sorts.</p>"
            + table(RESULTS, [cells for row in rows for cells in result_cells(row)]),
        ),
        section("Tasks", task_links(rows)),
        section("Optimizers", described(content["entrants"])),
        section("What the words mean", definitions(DEFINITIONS)),
        section(
            "Environment",
            table(["", ""], [[k, str(v)] for k, v in content["environment"].items()]),
        ),
        section(
            "Configuration",
            f"<pre>{html.escape(json.dumps(content['config'], indent=1))}</pre>",
        ),
    )


def task_page(content: Mapping[str, Any], row: Mapping[str, Any], figure: str) -> str:
    """Write the page of one task: curves, results, and what tuning chose."""
    facts = [
        row["kind"],
        f"{row['num_parameters']:,} parameters",
        f"{row['horizon']} steps",
        f"solved at a loss of {number(row['solved'])}",
        *([row["axis"]] if row["axis"] else []),
    ]
    return page(
        f"{row['task']}: {heading(content)}",
        f"<p><a href='../report.html'>All tasks</a>. {html.escape(', '.join(facts))}.</p>",
        "<p>Lines are medians over seeds, bands the quartiles.</p>",
        f"<figure>{figure}</figure>",
        section("Results", table(RESULTS, result_cells(row))),
        section(
            "Settings", table(("optimizer", "best", "first at the target"), setting_cells(row))
        ),
        section("What the words mean", definitions(DEFINITIONS)),
    )


def section(title: str, content: str) -> str:
    """A part of a page under a heading; nothing where there is no content."""
    return f"<h2>{html.escape(title)}</h2>\n{content}" if content else ""


def incomplete(content: Mapping[str, Any]) -> str:
    """Say which tasks aggregates leave out because an optimizer has no result there."""
    text = left_out(content)
    return f"<p class='note'>{html.escape(text)}</p>" if text else ""


def task_links(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of the tasks, each with a link to its page."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in SUITE)
    lines = []
    for row in rows:
        name = html.escape(row["task"])
        cells = (
            row["kind"],
            row["axis"],
            f"{row['num_parameters']:,}",
            str(row["horizon"]),
            number(row["solved"]),
        )
        text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td><a href='tasks/{name}.html'>{name}</a></td>{text}</tr>")
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def described(entrants: Sequence[Mapping[str, Any]]) -> str:
    """What each optimizer is."""
    return definitions({entrant["name"]: entrant["description"] for entrant in entrants})


def definitions(meanings: Mapping[str, str]) -> str:
    """A list of words and what they mean."""
    items = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in meanings.items())
    return f"<dl>{''.join(items)}</dl>"


def page(title: str, *parts: str) -> str:
    """A page with a title."""
    body = "\n".join(part for part in parts if part)
    return (
        f"<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>\n{MADE_BY}\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n<script>{SORT}</script>\n</body>\n</html>\n"
    )


MADE_BY = "<meta name='generator' content='l2o suite'>"
"""By which a page is known that a later report may remove."""

SORT = """
for (const table of document.querySelectorAll('table')) {
  table.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
    const rows = [...table.querySelectorAll('tr')].slice(1);
    const sign = head.dataset.order === 'up' ? -1 : 1;
    head.dataset.order = sign === 1 ? 'up' : 'down';
    const value = row => row.cells[column].textContent
      .replace(/^[a-z]+ (?=[-\\d])/, '').replace(/,(?=\\d{3})/g, '');
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)], [p, q] = [parseFloat(x), parseFloat(y)];
      if (isNaN(p) && isNaN(q)) return sign * x.localeCompare(y);
      if (isNaN(p) || isNaN(q)) return isNaN(p) ? 1 : -1;
      return sign * (p - q);
    });
    rows.forEach(row => row.parentNode.append(row));
  }));
}
"""
