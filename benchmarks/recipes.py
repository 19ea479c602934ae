"""What meta-training cost and what came of it, from run folders.

`python benchmarks/recipes.py NAME=runs/first ...` writes or replaces those entries of
`results/recipes.json`, under `meta_training`: outer and inner steps, minutes, revision, and the
mean of each meta-loss over every sixth of the run, null where it has no line. What a theta is worth
on tasks that it was not trained on is `speedups.py`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, write

SIXTHS = 6


def summary(folder: Path) -> dict[str, Any]:
    """Summarise a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    provenance = json.loads((folder / "provenance.json").read_text())
    edges = np.linspace(0, rows[-1]["step"], SIXTHS + 1)
    sixth = np.searchsorted(edges, [row["step"] for row in rows]) - 1

    def means(key: str) -> list[float | None]:
        parts = [
            [
                row[key]
                for row, part in zip(rows, sixth, strict=True)
                if part == i and row.get(key) is not None
            ]
            for i in range(SIXTHS)
        ]
        return [round(float(np.mean(values)), 3) if values else None for values in parts]

    return {
        "outer_steps": rows[-1]["step"],
        "inner_steps": rows[-1]["inner_steps"],
        "minutes": round(sum(row["seconds"] for row in rows) / 60, 1),
        "revision": provenance.get("revision"),
        "meta_loss_by_sixths": {k: means(k) for k in sorted(rows[-1]) if k.endswith("meta_loss")},
    }


def main() -> None:
    """Read, print and write."""
    parser = argparse.ArgumentParser(description="Cost and outcome of meta-training runs.")
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER of each run")
    path = RESULTS / "recipes.json"
    kept = json.loads(path.read_text()) if path.exists() else {"meta_training": {}}
    for given in parser.parse_args().runs:
        name, _, folder = given.partition("=")
        names = ("metrics.jsonl", "provenance.json")
        if not folder or not all((Path(folder) / name).exists() for name in names):
            parser.error(f"`runs` must be NAME=FOLDER of l2o meta-train; got {given}")
        kept["meta_training"][name] = found = summary(Path(folder))
        print(
            name, found["outer_steps"], found["minutes"], found["meta_loss_by_sixths"]["meta_loss"]
        )
    print(write("recipes", kept))


if __name__ == "__main__":
    main()
