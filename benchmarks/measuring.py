"""What benchmarks share: programs that take turns, the machine they ran on, and result files.

Machines are noisy, so a figure is a ratio to a yardstick that ran in the same process, in turn with
what it is compared with.
"""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from l2o.distributed import processes
from l2o.runs.folder import atomic_write

RESULTS = Path("benchmarks/results")


def wide_console() -> Console:
    """One that does not cut off the columns of a table in a log or a narrow terminal."""
    found = Console()
    return Console(width=max(found.width, 120))


@dataclass(frozen=True)
class Program:
    """Something to time.

    Attributes:
        run: does it once, and waits until it is done.
        work: what it does, in the unit of the figures: parameters updated, inner steps.
        repeats: how often in one turn.
    """

    run: Callable[[], None]
    work: float
    repeats: int = 1


@dataclass(frozen=True)
class Times:
    """What a program took, in seconds for a unit of work, in each round."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.seconds)

    def over(self, yardstick: "Times") -> dict[str, float]:
        """Its time over that of another, round by round: median, lowest and highest."""
        ratios = [a / b for a, b in zip(self.seconds, yardstick.seconds, strict=True)]
        return {
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }


def take_turns(programs: Mapping[str, Program], rounds: int) -> dict[str, Times]:
    """Times programs one after the other, `rounds` times; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program.run()
    for _ in range(rounds):
        for name, program in programs.items():
            started = time.perf_counter()
            for _ in range(program.repeats):
                program.run()
            elapsed = time.perf_counter() - started
            seconds[name].append(elapsed / (program.repeats * program.work))
    return {name: Times(found) for name, found in seconds.items()}


def environment() -> dict[str, Any]:
    """What figures were computed with and on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "optax": version("optax"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": models[0] if models else platform.machine(),
        "cores": len(processes.cores()),
        "load_before": os.getloadavg()[0],
    }


def write(name: str, result: Any) -> Path:
    """Writes `name.json`, whole or not at all; what nothing else is in has a line."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps(result, indent=1) + "\n"
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: re.sub(r"\n *", " ", found[0]), text)
    atomic_write(path, text.encode())
    return path
