"""How many times fewer steps one optimizer needs to the final losses of each of its rivals.

`python benchmarks/speedups.py digits runs/suite` reads what `l2o suite --out runs/suite` kept, of
all tasks on which both took part, each from the first folder that has it. The steps are those of
`docs/suite.md`, with each rival in turn as the reference: to a training loss those of the setting
that was first there on tuning seeds, and 0 where a run never gets there. Over all tasks it is the
interquartile mean of seeds and tasks, with an interval over seeds. Beside it stand the number of
tasks on which the median test metric, that is accuracy or else the loss, is at least as good as
the rival's, and the diverged runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from join_suites import results_of
from measuring import wide_console, write
from rich.table import Table

from l2o.cli.suite import find_suite
from l2o.evaluation import aggregates
from l2o.evaluation.statistics import median_interval
from l2o.suite.result import Result
from l2o.suite.suite_task import SuiteTask, selected
from l2o.suite.summary import LOSSES, figures


def metric_on_test(result: Result) -> float:
    """Median of what is better when larger: accuracy, or else the loss with a minus."""
    found = result.best.test_end
    return float(np.median(found["accuracy"] if "accuracy" in found else -found["loss"]))


def compare(
    own: dict[str, Result], other: dict[str, Result], entries: Sequence[SuiteTask]
) -> dict[str, Any]:
    """One optimizer over one rival, by task and over all tasks."""
    both = [entry for entry in entries if entry.name in own and entry.name in other]
    found: dict[str, Any] = {"tasks": {entry.name: {} for entry in both}}
    for losses in LOSSES:
        beside = [
            figures(own[entry.name], other[entry.name], entry.solved, losses) for entry in both
        ]
        speedups = np.stack([f.speedup for f in beside], axis=1)
        estimate = aggregates.stratified_bootstrap(speedups, aggregates.interquartile_mean)
        ratios = [median_interval(f.ratio)._asdict() for f in beside]
        found[losses] = {
            "speedup": estimate._asdict(),
            "ahead": sum(ratio["high"] < 1.0 for ratio in ratios),
            "behind": sum(ratio["low"] > 1.0 for ratio in ratios),
        }
        for i, entry in enumerate(both):
            found["tasks"][entry.name][losses] = {
                "speedup": median_interval(speedups[:, i])._asdict(),
                "ratio": ratios[i],
            }
    metrics = [(metric_on_test(own[e.name]), metric_on_test(other[e.name])) for e in both]
    found["test_metric_at_least"] = sum(a >= b for a, b in metrics)
    return found


def shown(estimate: dict[str, float]) -> str:
    """A number with its interval."""
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description="Speed-ups over each rival of a suite.")
    parser.add_argument("name", help="the optimizer, as the suite calls it")
    parser.add_argument("folders", nargs="+", type=Path, help="folders of l2o suite --out")
    parser.add_argument("--suite", default="suite-1", help="name of the suite, or module:attribute")
    parser.add_argument("--tasks", nargs="+", help="tasks of the suite; all if not given")
    parser.add_argument("--json", help="name of a file in benchmarks/results")
    options = parser.parse_args()
    try:
        entries = selected(find_suite(options.suite), options.tasks or ())
    except ValueError as error:
        parser.error(str(error))
    by_name: dict[str, dict[str, Result]] = {}
    for entry in entries:
        for folder in options.folders:
            for name, (result, _) in results_of(folder, entry.name).items():
                by_name.setdefault(name, {}).setdefault(entry.name, result)
    if not by_name:
        parser.error("`folders` must hold results of l2o suite; got none of these tasks")
    if options.name not in by_name:
        parser.error(f"`name` must be among {', '.join(sorted(by_name))}; got {options.name}")
    own = by_name.pop(options.name)
    by_name = {name: other for name, other in by_name.items() if own.keys() & other.keys()}
    found = {name: compare(own, other, entries) for name, other in by_name.items()}
    table = Table("rival", "tasks", "training", "validation", "ahead, behind", "test metric")
    for name, row in found.items():
        table.add_row(
            name,
            str(len(row["tasks"])),
            *(shown(row[losses]["speedup"]) for losses in LOSSES),
            ", ".join(f"{row[k]['ahead']} {row[k]['behind']}" for k in LOSSES),
            f"{row['test_metric_at_least']} of {len(row['tasks'])}",
        )
    wide_console().print(table)
    diverged = {task: float(np.mean(r.best.diverged)) for task, r in own.items()}
    print("diverged:", {task: share for task, share in diverged.items() if share} or "none")
    if options.json:
        print(write(options.json, {"optimizer": options.name, "over": found, "diverged": diverged}))


if __name__ == "__main__":
    main()
