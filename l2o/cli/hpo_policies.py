"""How `l2o compare-hpo` meta-trains the policies that it sets beside engines."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from l2o import registry
from l2o.cli.meta_train import meta_trained
from l2o.cli.methods.estimators import NRES
from l2o.cli.methods.strategies import CMA
from l2o.cli.presets import PRESETS
from l2o.cli.settings import MetaTraining, Output
from l2o.hpo.trained_policy import TrainedPolicy, trained_policy

_SCHEDULER = replace(
    PRESETS["scheduler"],
    optimizer=("l2o.hpo.trained_policy:small_scheduler",),
    evaluate=False,
    output=Output(quiet=True),
)

WAYS: Mapping[str, MetaTraining] = {
    "ppo": _SCHEDULER,
    "nres": replace(_SCHEDULER, window=150, method=NRES(std=0.03)),
    "CMA_ES": replace(_SCHEDULER, window=150, method=CMA(std=0.03, runs_per_candidate=2)),
}
"""Settings of meta-training by name; all take about the same inner steps."""


def check_ways(names: Sequence[str]) -> None:
    """Raises a `ValueError` that says what to type unless all are known and differ."""
    for name in names:
        if name not in WAYS:
            raise registry.unknown_name_error("policies", name, WAYS)
    if len(set(names)) < len(names):
        raise ValueError(f"`policies` must differ; got {' '.join(names)}. Drop one.")


def settings_of(
    way: str, families: Sequence[str], horizon: tuple[int, int], seed: int, folder: Path
) -> MetaTraining:
    """How a policy is meta-trained for a comparison.

    Args:
        way: name in `WAYS`.
        families: whose training tasks it is meta-trained on.
        horizon: shortest and longest run.
        seed: of everything random.
        folder: that holds the run folder.
    """
    output = replace(WAYS[way].output, run_dir=str(folder / way))
    return replace(WAYS[way], task=tuple(families), horizon=horizon, seed=seed, output=output)


def train_policy(settings: MetaTraining, inner_steps: float, console: Console) -> TrainedPolicy:
    """Meta-trains a policy, or takes the one that a run there has found."""
    lopt, theta, summary = meta_trained(settings, inner_steps, console)
    return trained_policy(settings.method.name, lopt, theta, summary)
