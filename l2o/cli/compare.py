"""`l2o compare`: runs side by side, from their folders."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from l2o.cli.arguments import check_writable, parse
from l2o.evaluation.run_comparison import Run, read_run
from l2o.evaluation.run_comparison_report import (
    NAME,
    caveats,
    evaluation_table,
    setting_table,
    total_table,
    write_run_comparison,
)
from l2o.runs.folder import RunFolder


@dataclass(frozen=True)
class Compare:
    """Tabulates and plots runs side by side; nothing is trained."""

    run: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folders, finished or not; NAME=RUN gives one another name than its folder's."""
    out: str = "runs/compare"
    """Folder for compare.json, curves.csv and report.html."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o compare RUN RUN ...`."""
    options = parse(Compare, "compare", arguments)
    runs = find_runs(options.run)
    check_writable(options.out, "out", "runs/compare")
    if RunFolder(Path(options.out)).config.exists():
        raise ValueError(
            f"`out` must be a folder for comparisons; got {options.out}, which holds a run. "
            "Try out=runs/compare."
        )
    page = write_run_comparison(options.out, runs)
    content = json.loads((page.parent / NAME).read_text())
    console.print(total_table(content))
    if content["settings"]:
        console.print(setting_table(content))
    if content["evaluations"]:
        console.print(evaluation_table(content))
    for text in caveats(content):
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(str(page), soft_wrap=True, markup=False)
    return 0


def find_runs(words: Sequence[str]) -> list[Run]:
    """The runs that the command line names.

    Raises:
        ValueError: if there are fewer than two, one is no run, or two have one name.
    """
    runs: dict[str, Run] = {}
    for word in words:
        label, equals, rest = word.partition("=")
        is_labelled = bool(equals) and not Path(word).exists()
        name, path = (label, rest) if is_labelled else (Path(word).name, word)
        name = name if is_labelled or name not in runs else word.rstrip("/")
        if name in runs:
            raise ValueError(
                f"`RUN` must name each once; got {name} twice. Drop one, or try other_{name}=..."
            )
        runs[name] = read_run(name, Path(path))
    if len(words) < 2:
        raise ValueError(
            f"`RUN` must name two runs or more; got {' '.join(words) or 'none'}. "
            "Try runs/digits old=runs/first."
        )
    return list(runs.values())
