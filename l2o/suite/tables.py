"""The tables and sentences of a suite's report as text, from its `suite.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from l2o.evaluation.tables import interval_text, markdown_table, number, setting

LOSS_NAMES = {"train": "training", "valid": "validation"}

AGGREGATES = (
    "optimizer",
    "score, training",
    "score, validation",
    "failed",
    "solved",
    "better in training",
    "better in validation",
    "speed-up in steps",
    "in seconds",
    "speed-up to validation loss",
)
"""Columns of the table with a row for each optimizer."""

RESULTS = (
    "task",
    "optimizer",
    "training loss",
    "over the reference's",
    "validation loss",
    "over the reference's",
    "test metric",
    "speed-up to training loss",
    "in seconds",
    "speed-up to validation loss",
    "in seconds",
    "diverged",
    "cost of a step",
    "state",
)
"""Columns of the table with a row for each optimizer on each task."""

DEFINITIONS = {
    "reference": "A tuned baseline. Its final loss on a seed is what others are to reach on the "
    "same seed, unless it is below what counts as solved: then that.",
    "score": "1 where the final loss is at or below what counts as solved, 0 where it is no lower "
    "than the first or the run diverged, logarithmic between. The table has the interquartile mean "
    "over all seeds and tasks with its 95 % bootstrap interval over seeds.",
    "failed": "Share of runs whose training score is 0. The interquartile mean does not see them "
    "if they are fewer than a quarter.",
    "solved": "Share of runs whose training score is 1.",
    "better": "Probability that a run has a higher score than one of the reference on a task "
    "drawn at random, ties counted half.",
    "speed-up": "The reference's steps to its own final loss over the steps that an optimizer "
    "needs to it, on the same seed: 1 is a draw, 0 means never. To the training loss rivals use "
    "the setting that was first there on tuning seeds, or else their best; to the validation loss "
    "their best. Medians over seeds, with their 95 % intervals; of all tasks the median.",
    "in seconds": "The speed-up times the reference's cost of a step over the optimizer's.",
    "cost of a step": "Time of an inner step with all seeds together, over that of plain SGD on "
    "the same task, the median of turns that alternate.",
    "state": "Numbers in the optimizer's state for each parameter.",
    "over the reference's": "Median over seeds of the ratio of final losses, both no less than "
    "what counts as solved, with its 95 % interval.",
    "(seen)": "The optimizer was meta-trained on, or chosen by, the task's family and data.",
    "(edge)": "The best rate is the lowest or highest that was tried; a better one may lie beyond.",
    "(untuned)": "Used as it is, with one setting for all tasks.",
}
"""What the words of the tables mean."""

Row = Mapping[str, Any]


def estimate(values: Mapping[str, float | None], digits: int = 3) -> str:
    """Format a number with its interval; "n/a" for one that is not finite."""
    middle = values.get("median", values.get("value"))
    if middle is None or values["low"] is None or values["high"] is None:
        return "n/a"
    return interval_text(middle, values["low"], values["high"], digits)


def aggregate_cells(content: Row) -> list[list[str]]:
    """Format the aggregates of every optimizer, in the order of `AGGREGATES`."""
    return [
        [
            name,
            estimate(found["train"]["interquartile_mean"]),
            estimate(found["valid"]["interquartile_mean"]),
            f"{found['train']['failed']:.1%}",
            f"{found['train']['solved']:.0%}",
            estimate(found["train"]["probability_of_improvement"], 2),
            estimate(found["valid"]["probability_of_improvement"], 2),
            number(found["train"]["median_speedup"]),
            number(found["train"]["median_speedup_seconds"]),
            number(found["valid"]["median_speedup"]),
        ]
        for name, found in content["aggregates"].items()
    ]


def result_cells(row: Row) -> list[list[str]]:
    """Format every optimizer on one task, in the order of `RESULTS`."""
    return [
        [
            row["task"],
            name + marks(found),
            estimate(found["train"]["final"]),
            estimate(found["train"]["ratio"]),
            estimate(found["valid"]["final"]),
            estimate(found["valid"]["ratio"]),
            test_text(found["test"]),
            estimate(found["train"]["speedup"]),
            estimate(found["train"]["speedup_seconds"]),
            estimate(found["valid"]["speedup"]),
            estimate(found["valid"]["speedup_seconds"]),
            f"{found['diverged']:.0%}",
            number(found["relative_cost"], 2),
            number(found["state_per_parameter"], 2),
        ]
        for name, found in row["results"].items()
    ]


def setting_cells(row: Row) -> list[list[str]]:
    """Format what tuning chose for every optimizer of a task."""
    return [
        [name, setting(found["setting"]), setting(found["fastest_setting"])]
        for name, found in row["results"].items()
        if found["is_tuned"]
    ]


def marks(found: Row) -> str:
    """What a reader must know behind an optimizer's name."""
    seen = " (seen)" if found["is_seen"] else ""
    if not found["is_tuned"]:
        return f"{seen} (untuned)"
    return f"{seen} (edge)" if found["at_grid_edge"] else seen


def test_text(test: Mapping[str, Mapping[str, float | None]]) -> str:
    """Format the accuracy on test data, or the loss of a task that has none."""
    name = "accuracy" if "accuracy" in test else "loss"
    return f"{name} {estimate(test[name])}"


def heading(content: Row) -> str:
    """Say what was compared."""
    others = [e["name"] for e in content["entrants"] if e["name"] != content["reference"]]
    number_of = len(content["rows"])
    return (
        f"{', '.join(others) or 'Nothing'} beside tuned {content['reference']} on {number_of} "
        f"task{'' if number_of == 1 else 's'} of {content['suite']}"
    )


def findings(content: Row) -> list[str]:
    """Write what each optimizer does worse and better than the reference, learned ones first."""
    reference = content["reference"]
    entrants = sorted(content["entrants"], key=lambda e: not e["is_learned"])
    return [
        sentence
        for entrant in entrants
        if entrant["name"] != reference
        for sentence in findings_of(content, entrant["name"], reference)
    ]


def findings_of(content: Row, name: str, reference: str) -> list[str]:
    """Write about one optimizer: where it fails, where it loses, where it wins, how fast it is."""
    rows = [row for row in content["rows"] if name in row["results"]]
    if not rows:
        return []
    failed = {row["task"]: row["results"][name]["train"]["failed"] for row in rows}
    failing = [f"{task} ({share:.0%} of runs)" for task, share in failed.items() if share > 0]
    (entrant,) = [e for e in content["entrants"] if e["name"] == name]
    seen = [row["task"] for row in rows if row["results"][name]["is_seen"]]
    sentences = []
    if entrant["is_learned"] and not entrant["says_what_it_has_seen"]:
        sentences.append(f"{name} does not say what it was meta-trained on: it may be any of this.")
    if seen:
        sentences.append(
            f"{name} was meta-trained on, or chosen by, the family and data of {len(seen)} of "
            f"{len(rows)} tasks{listed(seen)}."
        )
    if failing:
        sentences.append(
            f"{name} fails on {len(failing)} of {len(rows)} tasks, where runs diverge or end no "
            f"lower than they began: {', '.join(failing)}."
        )
    for losses, words in LOSS_NAMES.items():
        ratios = {row["task"]: row["results"][name][losses]["ratio"] for row in rows}
        middle = float(np.median([ratio["median"] for ratio in ratios.values()]))
        worse = [task for task, ratio in ratios.items() if ratio["low"] > 1.0]
        better = [task for task, ratio in ratios.items() if ratio["high"] < 1.0]
        sentences.append(
            f"By final {words} loss {name} is behind tuned {reference} on {len(worse)} of "
            f"{len(rows)} tasks{listed(worse)}, ahead on {len(better)}{listed(better)}, and not "
            f"told apart on the others; the median ratio over tasks is {number(middle)}."
        )
    if name in content["aggregates"]:
        found = content["aggregates"][name]["train"]
        sentences.append(
            f"To {reference}'s final training loss the median speed-up of {name} over tasks is "
            f"{number(found['median_speedup'])} in steps and "
            f"{number(found['median_speedup_seconds'])} in seconds; {found['reached']:.0%} of runs "
            "get there."
        )
    return sentences


def left_out(content: Row) -> str:
    """Say which tasks aggregates leave out because an optimizer has no result there."""
    names = [r["task"] for r in content["rows"] if r["task"] not in content["aggregated_tasks"]]
    return f"Aggregates leave out {', '.join(names)}: not all were run there." if names else ""


def listed(names: Sequence[str], most: int = 8) -> str:
    """List some names in brackets; nothing if there are none."""
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" ({', '.join(names[:most])}{more})"


def markdown(content: Row) -> str:
    """Write the report in Markdown."""
    parts = [
        f"# {heading(content)}\n",
        "".join(f"- {sentence}\n" for sentence in findings(content)),
        markdown_table(AGGREGATES, aggregate_cells(content)) if content["aggregates"] else "",
        left_out(content) and f"{left_out(content)}\n",
        markdown_table(RESULTS, [cells for row in content["rows"] for cells in result_cells(row)]),
        "".join(f"- *{name}*: {meaning}\n" for name, meaning in DEFINITIONS.items()),
    ]
    return "\n".join(part for part in parts if part)
