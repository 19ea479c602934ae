"""`l2o report`: the pages of a report, made again from its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from l2o.cli.arguments import parse
from l2o.evaluation.report import comparison_table, read_report, render_report


@dataclass(frozen=True)
class Report:
    """Makes report.html again from a run's report.json."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    png: bool = False
    """Write report.png, too."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o report RUN [--png]`."""
    options = parse(Report, "report", arguments)
    paths = render_report(options.run, png=options.png)
    console.print(comparison_table(read_report(options.run)["comparisons"]))
    for path in paths.values():
        console.print(str(path), soft_wrap=True, markup=False)
    return 0
