"""Runs optimizers of which nothing is tuned on the tasks of suites that were run elsewhere.

`python benchmarks/beside.py mine=FILE runs/gpu runs/cpu --out runs/mine` takes from what `l2o suite
--out FOLDER` kept, the first folder that has a task, the reference's final loss, budget and seed,
and trains each optimizer there, on this machine: a rival need not be tuned again to stand beside
it. Losses of two machines differ by rounding; seconds do not compare. What is in `--out` is not
run again. Read both with `speedups.py mine runs/gpu runs/cpu runs/mine`.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from join_suites import identity_of, result_files

from l2o.cli.suite import find_all, find_suite
from l2o.suite.result import read_result
from l2o.suite.run import BUDGETS, Budget, TaskRunner, make_task
from l2o.suite.suite_task import selected


def reference_of(folders: list[Path], task: str) -> tuple[float, Budget, int] | None:
    """Target, budget and seed of NAdamW, the reference, on a task, in the first folder of it."""
    for folder in folders:
        path = result_files(folder, task).get("nadamw")
        if path is not None:
            config = json.loads((folder / "suite.json").read_text())["config"]
            budget = replace(BUDGETS["full"], **json.loads(identity_of(path)["budget"]))
            return read_result(path)[0], budget, config["seed"]
    return None


def main() -> None:
    """Train on task after task."""
    parser = argparse.ArgumentParser(description="Untuned optimizers beside kept results.")
    parser.add_argument("optimizer", help="name, or NAME=FILE, as in l2o suite; several by commas")
    parser.add_argument("folders", nargs="+", type=Path, help="folders of l2o suite --out")
    parser.add_argument("--suite", default="suite-1", help="name of the suite, or module:attribute")
    parser.add_argument("--tasks", nargs="*", help="tasks; all that have results if not given")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()
    try:
        entrants = find_all(options.optimizer.split(","))
        entries = selected(find_suite(options.suite), options.tasks or ())
    except ValueError as error:
        parser.error(str(error))
    if tuned := [entrant.name for entrant in entrants if entrant.baseline.is_tuned]:
        parser.error(f"`optimizer` must have nothing that is tuned; got {', '.join(tuned)}")
    references = {entry.name: reference_of(options.folders, entry.name) for entry in entries}
    if not any(references.values()):
        parser.error("`folders` must hold results of nadamw; got none on these tasks")
    for entry in entries:
        if (reference := references[entry.name]) is None:
            continue
        target, budget, seed = reference
        runner = TaskRunner(entry, make_task(entry), budget, options.out, seed)
        for entrant in entrants:
            result, _ = runner.run(entrant, target)
            loss = float(result.best.train[:, -1].mean())
            print(f"{entry.name} {entrant.name}: {loss:.3g}, {result.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
