"""Joins the results of a suite whose tasks were run in several folders, or on several machines.

`l2o suite --out FOLDER --tasks ...` keeps each result in FOLDER/results. This reads those of all
folders and writes one report of them, and with --compact a `suite.json` without curves to keep:

    python benchmarks/join_suites.py runs/joined runs/cpu runs/gpu --compact suite.json

All results of a task are of one folder, that with most of them, so that optimizers are compared on
one device. Where others have some, too, final losses over theirs are printed. Folders must be of
the same options but for tasks.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from l2o.cli.suite import find_all, find_reference, find_suite
from l2o.runs.provenance import provenance
from l2o.suite.report import read_suite_report, write_suite_report
from l2o.suite.result import Result, read_result
from l2o.suite.summary import summarise


def result_files(folder: Path, task: str) -> dict[str, Path]:
    """Files of results on a task by optimizer, the newest of each."""
    paths = sorted(folder.glob(f"results/{task}/*.json"), key=lambda path: path.stat().st_mtime)
    return {read_result(path)[1].entrant: path for path in paths}


def identity_of(path: Path) -> dict[str, str]:
    """What a result depends on."""
    return json.loads(path.read_text())["identity"]


def results_of(folder: Path, task: str) -> dict[str, tuple[Result, dict[str, str]]]:
    """Results on a task by optimizer with what they depend on, the newest of each."""
    files = result_files(folder, task)
    return {name: (read_result(path)[1], identity_of(path)) for name, path in files.items()}


def compare(task: str, kept: dict[str, Any], others: dict[str, Any]) -> None:
    """Print final training losses over those of another folder, by seed."""
    for name in sorted(set(kept) & set(others)):
        ratio = kept[name][0].best.train[:, -1] / others[name][0].best.train[:, -1]
        print(f"{task} {name}: again {np.median(ratio):.3g} {ratio.round(3).tolist()}")


def check_alike(folders: list[Path], configs: list[dict[str, Any]]) -> None:
    """End with one line unless all folders are of the same options."""
    for folder, config in zip(folders, configs, strict=True):
        for name in (
            "suite",
            "reference",
            "optimizer",
            "budget",
            "num_seeds",
            "num_random",
            "seed",
        ):
            if config[name] != configs[0][name]:
                sys.exit(
                    f"error: folders must be of the same {name}; got {folder}, of {config[name]}, "
                    f"and {folders[0]}, of {configs[0][name]}."
                )


def without_curves(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a report without what is only drawn."""
    for row in content["rows"]:
        for result in row["results"].values():
            for losses in ("train", "valid"):
                result[losses].pop("curve")
    return content


def main() -> None:
    """Join what the command line names."""
    parser = argparse.ArgumentParser(description="Joins the results of several suite folders.")
    parser.add_argument("out", type=Path, help="folder for the report")
    parser.add_argument("folders", type=Path, nargs="+", help="folders of l2o suite --out")
    parser.add_argument("--compact", type=Path, help="file for the report without curves")
    options = parser.parse_args()
    configs = [read_suite_report(folder)["config"] for folder in options.folders]
    check_alike(options.folders, configs)
    config = configs[0]
    reference = find_reference(config["reference"])
    entrants = [e for e in find_all(config["optimizer"]) if e.baseline is not reference.baseline]
    suite = find_suite(config["suite"])
    results, made_on = [], {}
    for entry in suite:
        found = [results_of(folder, entry.name) for folder in options.folders]
        found = sorted((f for f in found if reference.name in f), key=len, reverse=True)
        if not found:
            continue
        for others in found[1:]:
            compare(entry.name, found[0], others)
        results += [result for result, _ in found[0].values()]
        identity = found[0][reference.name][1]
        made_on[entry.name] = {name: identity[name] for name in ("device", "jax", "optax", "l2o")}
    summary = summarise(suite, results, reference.name, [*entrants, reference])
    if len({on["device"] for on in made_on.values()}) > 1:  # no median over seconds of both
        for aggregate in summary["aggregates"].values():
            for losses in aggregate.values():
                losses["median_speedup_seconds"] = None
    config |= {
        "tasks": list(made_on),
        "made_on": made_on,
        "command": shlex.join(["python", "benchmarks/join_suites.py", *sys.argv[1:]]),
        "out": str(options.out),
        "seconds": sum(result.seconds for result in results),
        "joined_by": provenance()["revision"],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    print(write_suite_report(options.out, summary, suite=config["suite"], config=config))
    if options.compact:
        content = without_curves(read_suite_report(options.out))
        content["environment"] = {}  # that of joining, which is none of the results'
        options.compact.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
