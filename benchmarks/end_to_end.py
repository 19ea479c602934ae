"""Seconds from the start of a process to the first and to the hundredth outer step.

`python benchmarks/end_to_end.py` runs `python meta_train.py` (AdafacMLP under PES) with an empty
compilation cache and again with the one that the first run has filled; on one network, and on the
three of the family `digits_mlp` side by side.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from measuring import environment, wide_console, write
from rich.table import Table

TASKS = {"one network": "end_to_end:one_network", "digits_mlp": "digits_mlp"}


def one_network():
    """An MLP 64-32-32-10 on digits."""
    from l2o.tasks.digits import digits
    from l2o.tasks.image_mlp import image_mlp

    return image_mlp("digits_mlp_32x32_alone", digits(), (32, 32))


@dataclass(frozen=True)
class Options:
    """Times whole runs of `python meta_train.py`."""

    steps: int = 100
    """Outer steps."""
    optimizer: str = "adafac_mlp"
    """Name from `l2o list`."""


def timed_run(task: str, options: Options, cache: Path) -> dict[str, float]:
    """Seconds to the first and to the last line of metrics, with a line for every outer step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        script = Path(__file__).parents[1] / "meta_train.py"
        command = [sys.executable, str(script), "--task", task]
        what = ["--optimizer", options.optimizer, "--horizon", "500", "--steps", str(options.steps)]
        how = ["--log-every", "1", "--no-evaluate", "--quiet", "--run-dir", str(run)]
        environment = os.environ | {
            "XDG_CACHE_HOME": str(cache),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        started = time.perf_counter()
        child = subprocess.Popen(
            [*command, *what, *how], env=environment, stdout=subprocess.DEVNULL
        )
        seconds: dict[str, float] = {}
        while "last_step_seconds" not in seconds:
            if child.poll() not in (None, 0):
                raise RuntimeError(f"meta-training ended with status {child.returncode}")
            metrics = run / "metrics.jsonl"
            lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if lines and "first_step_seconds" not in seconds:
                seconds["first_step_seconds"] = time.perf_counter() - started
            if lines >= options.steps:
                seconds["last_step_seconds"] = time.perf_counter() - started
            time.sleep(0.02)
        child.wait()
    return seconds


def main(options: Options) -> None:
    """Measures, prints a table and writes JSON."""
    console = wide_console()
    about = environment()
    rows: list[dict[str, Any]] = []
    for name, task in TASKS.items():
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                console.print(f"{name}, {state} cache", highlight=False)
                row = {"task": name, "cache": state} | timed_run(task, options, Path(cache))
                rows.append(row)
    path = write("end_to_end", {"environment": about, "steps": options.steps, "rows": rows})
    shown = Table(title="Seconds from the start of the process")
    for column in ("task", "cache", "first outer step", f"outer step {options.steps}"):
        shown.add_column(column, no_wrap=True)
    for row in rows:
        seconds = (row["first_step_seconds"], row["last_step_seconds"])
        shown.add_row(row["task"], row["cache"], *(f"{s:.1f}" for s in seconds))
    console.print(shown)
    console.print(str(path), highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Options))
