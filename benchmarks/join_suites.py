"""Joins the results of a suite whose tasks were run in several folders, or on several machines.

`l2o suite --out FOLDER --tasks ...` keeps each result in FOLDER/results. This reads those of all
folders and writes one report of them:

    python benchmarks/join_suites.py runs/joined runs/cpu runs/gpu

All results of a task are of one folder, that with most of them, so that optimizers are compared on
one device. Where others have some, too, final losses over theirs are printed. Options must have
been the same in all but tasks.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from l2o.cli.suite import find_reference, find_suite
from l2o.suite.entrant import find_entrants
from l2o.suite.report import read_suite_report, write_suite_report
from l2o.suite.result import Result, read_result
from l2o.suite.summary import summarise


def results_of(folder: Path, task: str) -> dict[str, Result]:
    """Results on a task by optimizer, the newest of each."""
    paths = sorted(folder.glob(f"results/{task}/*.json"), key=lambda path: path.stat().st_mtime)
    results = [read_result(path)[1] for path in paths]
    return {result.entrant: result for result in results}


def device_of(folder: Path, task: str) -> str:
    """Device that the results on a task are of."""
    path = next(folder.glob(f"results/{task}/*.json"))
    return json.loads(path.read_text())["identity"]["device"]


def compare(task: str, kept: dict[str, Result], others: dict[str, Result]) -> None:
    """Print final training losses over those of another folder, by seed."""
    for name in sorted(set(kept) & set(others)):
        ratio = kept[name].best.train[:, -1] / others[name].best.train[:, -1]
        print(f"{task} {name}: again {np.median(ratio):.3g} {ratio.round(3).tolist()}")


def main() -> None:
    """Join what the command line names."""
    parser = argparse.ArgumentParser(description="Joins the results of several suite folders.")
    parser.add_argument("out", type=Path, help="folder for the report")
    parser.add_argument("folders", type=Path, nargs="+", help="folders of l2o suite --out")
    options = parser.parse_args()
    config = read_suite_report(options.folders[0])["config"]
    reference = find_reference(config["reference"])
    suite = find_suite(config["suite"])
    results, devices = [], {}
    for entry in suite:
        found = [(folder, results_of(folder, entry.name)) for folder in options.folders]
        found = [pair for pair in found if reference.name in pair[1]]
        if not found:
            continue
        found.sort(key=lambda pair: -len(pair[1]))
        folder, kept = found[0]
        for _, others in found[1:]:
            compare(entry.name, kept, others)
        results += kept.values()
        devices[entry.name] = device_of(folder, entry.name)
    entrants = [*find_entrants(config["optimizer"]), reference]
    config |= {"tasks": list(devices), "devices": devices, "command": "", "out": ""}
    config["seconds"] = sum(result.seconds for result in results)
    summary = summarise(suite, results, reference.name, entrants)
    options.out.mkdir(parents=True, exist_ok=True)
    print(write_suite_report(options.out, summary, suite=config["suite"], config=config))


if __name__ == "__main__":
    main()
