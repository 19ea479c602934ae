"""The figures that matter, each with its bar and its goal, from what the benchmarks have written.

`python benchmarks/bars.py` reads `benchmarks/results/*.json`, prints a line for each and writes
`bars.json`: a list of `name`, `value`, `bar`, `goal`, `ok`. `make bench` does all of it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from measuring import RESULTS, wide_console, write
from rich.table import Table


@dataclass(frozen=True)
class Bar:
    """A figure, and what it is to be.

    Attributes:
        name: of the figure.
        value: as measured.
        bar: what it must not exceed, or must reach if `more` is better.
        goal: what would be good; None where the bar is all.
        more: whether more is better.
    """

    name: str
    value: float
    bar: float
    goal: float | None = None
    more: bool = False

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return self.value >= self.bar if self.more else self.value <= self.bar


def of_updates() -> Iterator[Bar]:
    """Of `update_cost.py`."""
    rows = {(row["tree"], row["design"]): row for row in read("update_cost")["rows"]}
    limits = {"adafac_mlp": (10.0, 5.0), "mlp_lopt": (35.0, 20.0)}
    for design, (bar, goal) in limits.items():
        for tree in ("mlp", "transformer"):
            ratio = rows[tree, design]["ratio"]
            yield Bar(f"update of {design} over adam's, {tree}", ratio, bar, goal)
    for design in ("adafac_mlp", "celo"):
        temporary = rows["transformer", design]["temporary_bytes_per_parameter"]
        yield Bar(f"temporary bytes a parameter, {design}, transformer", temporary, 24.0, 8.0)
    large = rows["gpt2_small", "adafac_mlp"]
    seconds = large["trace_seconds"] + large["compile_seconds"]
    yield Bar("seconds to trace and compile, adafac_mlp, gpt2_small", seconds, 15.0)


def of_meta_training() -> Iterator[Bar]:
    """Of `throughput.py`."""
    result = read("throughput")
    rows = {(row["task"], row["estimator"], row["design"]): row for row in result["rows"]}
    limits = {
        "adafac_mlp": (0.3, 0.6),
        "mlp_lopt": (0.12, 0.2),
        "learnable_adam": (0.8, None),
    }
    for design, (bar, goal) in limits.items():
        ratio = rows["digits", "pes", design]["ratio"]
        yield Bar(f"inner steps of {design} under PES over adam's, digits", ratio, bar, goal, True)
    rate = rows["quadratic", "pes", "mlp_lopt"]["inner_steps_per_second"] / result["cores"]
    yield Bar(
        "inner steps a core and second, mlp_lopt under PES, quadratics", rate, 4e5, None, True
    )


def of_starts() -> Iterator[Bar]:
    """Of `end_to_end.py`."""
    for row in read("end_to_end")["rows"]:
        bar = {"cold": 10.0, "warm": 4.0}[row["cache"]]
        name = f"seconds to the first outer step, {row['task']}, {row['cache']} cache"
        yield Bar(name, row["first_step_seconds"], bar)


def of_growth() -> Iterator[Bar]:
    """Of `growth.py`."""
    rows = {(row["size"], row["value"]): row for row in read("growth")["rows"]}
    memory = lambda row: row["argument_megabytes"] + row["temporary_megabytes"]
    for size, small, large in (("window", 50, 500), ("horizon", 500, 5000)):
        growth = memory(rows[size, large]) / memory(rows[size, small]) - 1.0
        yield Bar(f"growth of memory when the {size} grows tenfold", growth, 0.05)


def read(name: str) -> dict[str, Any]:
    """What a benchmark has written."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def main() -> None:
    """Prints every figure beside its bar and writes them."""
    console = wide_console()
    bars = [*of_updates(), *of_meta_training(), *of_starts(), *of_growth()]
    shown = Table(title="Bars")
    for column in ("", "value", "bar", "goal", ""):
        shown.add_column(column, justify="right" if column else "left")
    for bar in bars:
        goal = "" if bar.goal is None else f"{bar.goal:,.4g}"
        limit = f"{'≥' if bar.more else '≤'} {bar.bar:,.4g}"
        shown.add_row(bar.name, f"{bar.value:,.3g}", limit, goal, "ok" if bar.ok else "MISSED")
    fields = ("name", "value", "bar", "goal")
    rows = [{k: asdict(bar)[k] for k in fields} | {"ok": bar.ok} for bar in bars]
    path = write("bars", rows)
    console.print(shown)
    console.print(str(path), highlight=False)


if __name__ == "__main__":
    main()
