"""The tables of a report as text, from the rows of `report.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from l2o.evaluation.statistics import Estimate
from l2o.evaluation.transfer import TransferMatrix

DEFINITIONS = {
    "task": "What was trained. “meta-trained” marks a task that the learned optimizer was "
    "meta-trained on: one of the same family, data and shapes, whatever its instances; "
    "“validated” one that its theta was chosen by.",
    "steps": "Inner steps of each training run, and the horizon the optimizers were told.",
    "seeds": "Training runs of each optimizer; a seed's instance, initial parameters and batches "
    "are the same for all of them, and none was used in meta-training or in tuning.",
    "learned": "Final loss of the learned optimizer, of which nothing was tuned: the mean training "
    "loss after the last step on eight fixed training batches. Medians are over seeds; brackets "
    "hold the 95 % interval of the median. A diverged run counts as the task's loss "
    "cap, and is never dropped.",
    "control": "Final loss of the first control, in a run folder the design before meta-training, "
    "its updates times the best factor. What lies between it and the learned optimizer is "
    "what meta-training gave beyond a well-chosen step size.",
    "best baseline": "The baseline with the lowest median final loss on tuning seeds. Baselines "
    "and controls are tuned for each task on as many seeds as are reported on, but other ones: "
    "learning rates, refined until the best lies between two others and a finer grid "
    "gains less than its interval, then as many random settings of all hyperparameters as `trials` "
    "says, which may be none; four finalists on as many other seeds again, by which baselines are "
    "compared, too.",
    "baseline": "Final loss of that baseline, on the same seeds as the learned optimizer.",
    "speed-up": "With L a rival's final loss on a seed, but no less than 2^-23 of "
    "its first, which counts as solved: the first step at which the rival "
    "is at or below L, over the first step at which the learned optimizer is, on the same seed, "
    "interpolating the logarithm of the loss between probes. The rival gets there with "
    "the rate and horizon that were fastest on tuning seeds, or else with its best. In the row of "
    "a task L is the best baseline's, and any baseline may be the fastest. 1 is a draw; 0 "
    "means that L was never reached. Counts of steps are at least 1.",
    "reached": "Share of seeds on which the learned optimizer reaches L, and the median speed-up "
    "among those.",
    "diverged": "Fraction of an optimizer's runs that end with a loss that is not finite "
    "or is above the task's loss cap.",
    "time ratio": "Wall-clock seconds per inner step of the learned optimizer over those of the "
    "baseline, with all seeds run together, without compilation. The speed-up divided by it is the "
    "speed-up in time.",
    "mean, worst tenth": "Mean of the final loss, and the loss that a tenth of the seeds exceed.",
    "validation loss, test loss": "Median loss on that split at the end. Tuning goes by the "
    "training loss.",
    "untuned": "An optimizer that is used as it is, with one setting for all tasks.",
    "edge": "The best rate is the lowest or highest that was tried; a better one may lie beyond.",
    "best setting": "The hyperparameters with the lowest median final loss on tuning seeds; a "
    "control has one, the factor of its updates, as its learning rate.",
    "fastest setting": "Those whose median curve on tuning seeds is first at that loss, which the "
    "speed-up goes by, too. The schedule, of a control the horizon that it is told, may end before "
    "the run does.",
}
"""Meaning of the columns and marks."""

COMPARISON = (
    "task",
    "steps",
    "seeds",
    "learned",
    "control",
    "best baseline",
    "baseline",
    "speed-up",
    "reached",
    "time ratio",
)
"""Columns of the table with a row for each task."""

ENTRANTS = (
    "task",
    "optimizer",
    "final loss",
    "mean, worst tenth",
    "validation loss",
    "test loss",
    "speed-up over it",
    "reached",
    "diverged",
    "µs / step",
)
"""Columns of the table with a row for each optimizer."""

CHOSEN = ("task", "optimizer", "best setting", "fastest setting")
"""Columns of the table with a row for each rival's hyperparameters."""

Row = Mapping[str, Any]


def number(value: float | None, digits: int = 3) -> str:
    """Format a number, thousands with commas; "n/a" for one that is not finite."""
    if value is None or not math.isfinite(value):
        return "n/a"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if 1e3 <= abs(value) < 1e6 else text


def interval_text(middle: float, low: float, high: float, digits: int = 3) -> str:
    """Format a median and its interval."""
    return f"{number(middle, digits)} [{number(low, digits)}, {number(high, digits)}]"


def bracketed(row: Row, name: str) -> str:
    """Format a field of a row and its interval."""
    values = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
    return "n/a" if values[0] is None else interval_text(*values)


def mark(entrant: Row) -> str:
    """What a reader must know behind a rival's name: that it is untuned, or at an edge."""
    if not entrant["is_tuned"]:
        return " (untuned)"
    return " (edge)" if entrant["at_grid_edge"] else ""


def seen_mark(row: Row) -> str:
    """What a reader must know behind a task's name: that it is not held out."""
    if row["seen"]:
        return " (meta-trained)"
    return " (validated)" if row.get("validated") else ""


def label(entrant: Row) -> str:
    """Name a rival with the rate that was chosen for it, and its mark."""
    rate = number(entrant["hyperparameters"]["learning_rate"])
    return f"{entrant['name']} at {rate}{mark(entrant)}"


def control_text(control: Row) -> str:
    """Format a control's final loss, with its factor."""
    return f"{bracketed(control, 'final_loss')}, {label(control)}"


def setting(values: Mapping[str, float]) -> str:
    """List hyperparameters, and where the schedule ends if it does so before the run."""
    end = values["horizon_fraction"]
    # Four digits, as a decay rate of 0.9996 is not 1.
    parts = [f"{k} {number(v, 4)}" for k, v in values.items() if k != "horizon_fraction"]
    return ", ".join([*parts, *([f"schedule ends at {100.0 * end:.3g} %"] if end < 1.0 else [])])


def best_baseline(row: Row) -> Row:
    """The entry of a row's best baseline."""
    (found,) = [b for b in row["baselines"] if b["name"] == row["best_baseline"]]
    return found


def reached_text(entrant: Row) -> str:
    """Format the share of seeds that reached a rival's final loss, and how fast those did."""
    where = entrant["speedup_where_reached"]
    return f"{entrant['reached']:.0%}" + (f", {number(where)} there" if where is not None else "")


def comparison_cells(row: Row) -> list[str]:
    """Format a task's row, in the order of `COMPARISON`."""
    best = best_baseline(row)
    ours, theirs = row["learned_seconds_per_step"], best["seconds_per_step"]
    return [
        row["task"] + seen_mark(row),
        str(row["steps"]),
        str(row["num_seeds"]),
        bracketed(row, "learned_final_loss"),
        control_text(row["controls"][0]) if row["controls"] else "none",
        label(best),
        bracketed(best, "final_loss"),
        bracketed(row, "speedup"),
        reached_text(row),
        number(ours / theirs, 2) if ours and theirs else "n/a",
    ]


def entrant_cells(row: Row) -> list[list[str]]:
    """Format every optimizer of a task, in the order of `ENTRANTS`."""
    ours = {k.removeprefix("learned_"): v for k, v in row.items() if k.startswith("learned_")}

    def cells(name: str, entrant: Row) -> list[str]:
        seconds = entrant["seconds_per_step"]
        return [
            row["task"],
            name,
            bracketed(entrant, "final_loss"),
            f"{number(entrant['final_loss_mean'])}, {number(entrant['final_loss_worst_tenth'])}",
            bracketed(entrant["valid"]["loss"], "median"),
            bracketed(entrant["test"]["loss"], "median"),
            bracketed(entrant, "speedup") if "speedup" in entrant else "",
            reached_text(entrant) if "reached" in entrant else "",
            f"{entrant['diverged']:.0%}",
            number(1e6 * seconds if seconds else None),
        ]

    return [
        cells("learned", ours),
        *(cells(label(c), c) for c in row["controls"]),
        *(cells(label(b), b) for b in row["baselines"]),
    ]


def chosen_cells(row: Row) -> list[list[str]]:
    """Format what tuning chose for every rival of a task, in the order of `CHOSEN`."""

    def cells(rival: Row) -> list[str]:
        best, fastest = rival["hyperparameters"], rival["fastest_hyperparameters"]
        other = setting(fastest) if fastest != best else "the same"
        return [row["task"], rival["name"] + mark(rival), setting(best), other]

    return [cells(rival) for rival in (*row["controls"], *row["baselines"])]


def test_cells(row: Row) -> list[list[str]]:
    """Format the test split's loss and metrics: task, name, learned, controls, best baseline."""
    best = best_baseline(row)
    return [
        [
            row["task"],
            name,
            bracketed(value, "median"),
            *(bracketed(control["test"][name], "median") for control in row["controls"][:1]),
            bracketed(best["test"][name], "median"),
        ]
        for name, value in row["learned_test"].items()
    ]


def shortfalls(row: Row) -> list[str]:
    """Write a sentence for every rival that ends lower than the learned optimizer."""
    ours = row["learned_final_loss"]

    def sentence(other: Row) -> str:
        is_apart = other["final_loss_high"] < row["learned_final_loss_low"]
        verb = "loses to" if is_apart else "is behind, but not told apart from,"
        return (
            f"On {row['task']} the learned optimizer {verb} {label(other)}: its median final loss "
            f"is {number(ours)}, against {number(other['final_loss'])}."
        )

    return [
        sentence(other)
        for other in (*row["controls"], *row["baselines"])
        if other["final_loss"] < ours
    ]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *escaped]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(rows: Sequence[Row]) -> str:
    """Write a report's tables, with what their columns mean."""
    parts = [
        "# Learned optimizer against tuned rivals\n",
        *(f"- {sentence}\n" for row in rows for sentence in shortfalls(row)),
        markdown_table(COMPARISON, [comparison_cells(row) for row in rows]),
        markdown_table(ENTRANTS, [cells for row in rows for cells in entrant_cells(row)]),
        markdown_table(CHOSEN, [cells for row in rows for cells in chosen_cells(row)]),
        "".join(f"- *{name}*: {meaning}\n" for name, meaning in DEFINITIONS.items()),
    ]
    return "\n".join(parts)


def aggregate_cells(rows: Mapping[str, Mapping[str, Estimate]]) -> list[list[str]]:
    """Format the aggregates of every optimizer, in the order in which they are given."""
    return [[name, *(interval_text(*e) for e in row.values())] for name, row in rows.items()]


def transfer_cells(matrix: TransferMatrix) -> list[list[str]]:
    """Format what was trained on in rows and tested on in columns; "n/a" without results."""
    value, low, high = matrix.estimate
    return [
        [
            name,
            *(
                interval_text(*ends) if math.isfinite(ends[0]) else "n/a"
                for ends in zip(value[i], low[i], high[i], strict=True)
            ),
        ]
        for i, name in enumerate(matrix.trained_on)
    ]
