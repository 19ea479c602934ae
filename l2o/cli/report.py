"""`l2o report`: the pages of a report, made again from its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from l2o.cli.arguments import parse
from l2o.evaluation.report import comparison_table, read_report, render_report
from l2o.suite.report import NAME, render_suite_report, show


@dataclass(frozen=True)
class Report:
    """Makes report.html again from a run's report.json or a suite's suite.json."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run or of a suite."""
    png: bool = False
    """Write report.png, too, as a suite always does."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o report RUN [--png]`."""
    options = parse(Report, "report", arguments)
    if (Path(options.run) / NAME).is_file():
        paths = {k: v for k, v in render_suite_report(options.run).items() if "/" not in k}
        show(options.run, console)
    else:
        paths = render_report(options.run, png=options.png)
        console.print(comparison_table(read_report(options.run)["comparisons"]))
    for path in paths.values():
        console.print(str(path), soft_wrap=True, markup=False)
    return 0
