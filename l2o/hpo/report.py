"""A comparison with engines as tables, as JSON and as a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2o.evaluation import plots
from l2o.evaluation.report import environment, plain_table, write_json
from l2o.evaluation.tables import interval_text, number
from l2o.hpo.summary import Bound, BreakEven, EngineResult, PolicyResult
from l2o.runs.folder import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

COLORS = ("#d55e00", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#777777")
"""Colours of engines."""

POLICY_COLORS = ("#0072b2", "#000000", "#882255", "#117733", "#999933")
"""Colours of policies."""

MARKED = (10, 100, 1_000, 10_000, 100_000)
"""Numbers of tasks whose share of meta-training is marked."""


@dataclass(frozen=True)
class TaskResult:
    """Results of engines and policies on one task.

    Attributes:
        task: Name of the task.
        steps: Inner steps of a run.
        budget: Inner steps of a search.
        engines: Results of engines.
        policies: Results of policies; the last is a policy before meta-training, if there is one.
    """

    task: str
    steps: int
    budget: int
    engines: Sequence[EngineResult]
    policies: Sequence[PolicyResult]


def write_results(
    folder: Path, results: Sequence[TaskResult], config: Mapping[str, Any], seconds: float | None
) -> list[Path]:
    """Write `hpo.json` and `hpo.png` into a folder, each as a whole or not at all.

    Args:
        folder: Folder to write to.
        results: Results of each task.
        config: Settings to record.
        seconds: Seconds that the whole comparison took; None where a part was done before.
    """
    content = {
        "config": config,
        "environment": environment(),
        "seconds": seconds,
        "tasks": [asdict(result) for result in results],
    }
    paths = [folder / "hpo.json", folder / "hpo.png"]
    write_json(paths[0], content)
    atomic_write(
        paths[1], plots.image([[panel(result)] for result in results], has_shared_legend=True)
    )
    return paths


def panel(result: TaskResult) -> plots.Draw:
    """Draw engines over the budget used; policies as lines, with shares of meta-training."""

    def draw(axes: "Axes") -> None:
        for i, engine in enumerate(result.engines):
            values = asdict(engine)
            shown = ~np.isnan(np.array(engine.median, np.float64))
            for key in ("median", "low", "high"):
                values[key] = np.array(values[key])[shown]
            budgets = np.array(engine.budget_used)[shown]
            plots.band(axes, budgets.tolist(), values, COLORS[i % len(COLORS)], "-", marker=".")
        axes.set_xscale("log")
        axes.set_yscale("log")
        first, last = result.steps, result.budget
        for i, policy in enumerate(result.policies):
            color = POLICY_COLORS[i % len(POLICY_COLORS)]
            loss = policy.final_loss
            axes.plot(
                [first, last], [loss.median] * 2, color=color, linestyle="--", label=policy.name
            )
            axes.fill_between([first, last], loss.low, loss.high, color=color, alpha=0.1)
            for tasks in MARKED:
                share = result.steps + (policy.inner_steps or 0) / tasks
                if policy.inner_steps and first <= share <= last:
                    axes.plot([share], [loss.median], "|", color=color, markersize=14)
                    axes.annotate(
                        f"{tasks:,}",
                        (share, loss.median),
                        xytext=(4, 4 - 7 * i),
                        textcoords="offset points",
                        fontsize=6,
                        color=color,
                    )
        plots.label(
            axes,
            f"{result.task}, {result.steps} steps",
            "inner steps of tuning, or of a run and meta-training\nshared by so many tasks",
            "final training loss",
        )

    return draw


def marked(name: str, diverged: float) -> str:
    """Format a name, with the share of runs that diverged if there are any."""
    return f"{name}, {diverged:.0%} diverged" if diverged else name


def loss_table(result: TaskResult) -> "Table":
    """Tabulate final losses after a run, half of the budget and all of it."""
    table = plain_table(
        f"{result.task}, {result.steps} steps: final training loss, and on the test split"
    )
    metrics = [name for name in result.engines[0].test if name != "loss"]
    table.add_column("", no_wrap=True)
    runs = result.budget // result.steps
    before = sorted({1, runs // 2})
    shown = [f"{n} run" + "s" * (n > 1) for n in before]
    for column in (*shown, f"{runs} runs of tuning", *metrics[:1]):
        table.add_column(column, no_wrap=True, justify="right")
    for engine in result.engines:
        table.add_row(
            marked(engine.name, engine.diverged),
            *(number(engine.median[n - 1], 2) for n in before),
            interval_text(*engine.final_loss, digits=2),
            *(number(engine.test[m]) for m in metrics[:1]),
        )
    for policy in result.policies:
        table.add_row(
            marked(policy.name + (" (meta-trained)" if policy.is_seen else ""), policy.diverged),
            *("" for _ in before),
            interval_text(*policy.final_loss, digits=2),
            *(number(policy.test[m]) for m in metrics[:1]),
        )
    return table


def break_even_table(result: TaskResult) -> "Table | None":
    """Tabulate from how many tasks on a policy is cheaper; None if no cost is known."""
    policies = [policy for policy in result.policies if policy.break_even]
    if not policies:
        return None
    table = plain_table(f"{result.task}: tasks from which on a policy is cheaper")
    table.add_column("", no_wrap=True)
    for policy in policies:
        table.add_column(f"{policy.name} ({policy.inner_steps:,})", justify="right")
    for i, engine in enumerate(result.engines):
        table.add_row(engine.name, *(num_tasks(policy.break_even[i]) for policy in policies))
    return table


def num_tasks(found: BreakEven) -> str:
    """Format numbers of tasks, the fewest first in the brackets."""

    def shown(bound: Bound) -> str:
        if bound.tasks is None:
            return "never"
        return f"{'' if bound.budget_used else '≤ '}{bound.tasks:,}"

    return f"{shown(found.middle)}\n[{shown(found.late)}, {shown(found.early)}]"


NOTE = """\
Tuning is on one training problem; losses are medians on other seeds, with 95 %
intervals over searches and seeds (engines) or seeds (policies: not tuned, one
meta-training run each). tasks: meta-training over the inner steps that a search
took to be as good, and stay so to its end, and to train its best trial to the
end, less those of one run, with 95 % intervals; ≤ if it was not within its
budget, never if its first run was as good."""
"""What the tables are."""
