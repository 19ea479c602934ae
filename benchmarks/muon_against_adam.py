"""Muon with weight decay beside Adam, each tuned, on an MLP, a conv net and a transformer.

A suite for `l2o suite`, from the folder that holds this one:

    l2o suite --suite benchmarks.muon_against_adam:suite --reference adam --optimizer muon adamw \\
        --seeds 8 --trials 16 --out runs/muon_against_adam
"""

import functools

from l2o import SuiteTask, Task
from l2o.registry import tasks_to_evaluate


def suite() -> tuple[SuiteTask, ...]:
    """Three small networks, 200 steps each."""
    return (
        entry("digits_mlp_32x32", "mlp", solved=1e-3),
        entry("digits_conv_8x16", "conv", solved=1e-3),
        entry("python_transformer_16x1", "attention", solved=1.0),
    )


def entry(name: str, kind: str, *, solved: float) -> SuiteTask:
    """Make an entry of a task that a family reports on."""
    make = functools.partial(_task, name)
    return SuiteTask(name, make, kind=kind, horizon=200, solved=solved)


def _task(name: str) -> Task:
    (found,) = tasks_to_evaluate((name,))
    return found
