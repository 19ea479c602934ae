"""A suite from its tasks and optimizers to results, which are kept and gone on with."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from l2o.datasets.fetch import data_rows, dataset_folder
from l2o.evaluation.baseline import Baseline
from l2o.evaluation.seen import shares_source
from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import check_seeds, first_reach, targets
from l2o.evaluation.training import Trainer
from l2o.evaluation.trials import cache_file
from l2o.evaluation.tuning import RATES, TRIALS, Search, Tuning, prepare, tune_one
from l2o.rng import stream
from l2o.suite.entrant import Entrant, check_disjoint
from l2o.suite.result import Result, Runs, read_result, result_file, runs_of, write_result
from l2o.suite.suite_task import SuiteTask, check_names
from l2o.task import Task

ROUNDS = 5
"""Turns in which an optimizer and SGD are timed."""


@dataclass(frozen=True)
class Budget:
    """How much a suite spends on a task.

    Attributes:
        num_seeds: Runs that are reported on, of each optimizer on each task; at least 8.
        num_random: Random settings of all hyperparameters of each rival.
        fewest_rates: Fewest learning rates that are tried of each.
        is_quick: Whether only the quick tasks of the suite are run.
    """

    num_seeds: int
    num_random: int
    fewest_rates: int
    is_quick: bool


BUDGETS: Mapping[Literal["quick", "full"], Budget] = {
    "quick": Budget(num_seeds=8, num_random=0, fewest_rates=9, is_quick=True),
    "full": Budget(num_seeds=16, num_random=TRIALS, fewest_rates=RATES, is_quick=False),
}
"""Budgets by name."""


def run_suite(
    suite: Sequence[SuiteTask],
    entrants: Sequence[Entrant],
    *,
    reference: Entrant,
    budget: Budget,
    folder: str | Path,
    seed: int = 0,
    allow_seen: bool = False,
) -> Iterator[Result]:
    """Run every optimizer on every task, the reference first, and yield each result.

    Results and tunings are kept in the folder: what is there is not run again, and what was stopped
    goes on. Rivals are tuned on seeds of their own (`l2o.evaluation.tuning`), whoever else takes
    part; the setting that is to be fast is the one that was first, on those seeds, at the
    reference's final training loss. Nothing of a learned optimizer is tuned.

    Args:
        suite: Tasks.
        entrants: Who takes part beside the reference.
        reference: Tuned baseline whose final losses are the targets of all.
        budget: How much is spent.
        folder: Folder for results, and for tunings in its `tuning`.
        seed: Seed of everything random.
        allow_seen: Whether a learned optimizer may have been meta-trained on a task's family and
            data; its result is marked.

    Raises:
        ValueError: If the suite names a task twice, data are missing, an optimizer was meta-trained
            on a task's family and data, or a number is out of range.
    """
    check_names(suite)
    check_seeds(budget.num_seeds)
    check_data(suite)
    others = [entrant for entrant in entrants if entrant.name != reference.name]
    made: dict[str, Task] = {}
    if any(entrant.trained_on for entrant in others):
        made = {entry.name: entry.make() for entry in suite}
        check_disjoint(others, made, allow_seen=allow_seen)
    for entry in suite:
        task = made.get(entry.name) or entry.make()
        arena = Arena(entry, task, budget, Path(folder), seed)
        result, goal = arena.run(reference, None)
        yield result
        for entrant in others:
            yield arena.run(entrant, goal)[0]


def check_data(suite: Sequence[SuiteTask]) -> None:
    """Raise a `ValueError` that says what to fetch if data of some tasks are missing."""
    present = {row.name for row in data_rows() if row.is_present}
    needed = dict.fromkeys(entry.dataset for entry in suite if entry.dataset)
    missing = [name for name in needed if name not in present]
    if missing:
        without = next(entry.name for entry in suite if entry.dataset == missing[0])
        raise ValueError(
            f"`suite` must have its data; got {without} and no {missing[0]} in "
            f"{dataset_folder(missing[0])}. Try l2o data fetch {' '.join(missing)}, or others by "
            "--tasks."
        )


class Arena:
    """One task of a suite, on which optimizers are run one after the other.

    Args:
        entry: Task of the suite.
        task: What it makes.
        budget: How much is spent.
        folder: Folder of results and tunings.
        seed: Seed of everything random.
    """

    def __init__(self, entry: SuiteTask, task: Task, budget: Budget, folder: Path, seed: int):
        self.entry, self.task, self.budget, self.folder = entry, task, budget, folder
        # As in `l2o evaluate` and `l2o tune-baselines`, whose tunings are the same.
        self.k_tuning, k_report = jax.random.split(stream(seed, "evaluation"))
        self.tuning_starts = draw_starts(self.k_tuning, task, 2 * budget.num_seeds)
        self.starts = draw_starts(k_report, task, budget.num_seeds)
        self.sgd_timer: Callable[[], float] | None = None

    def run(self, entrant: Entrant, goal: float | None) -> tuple[Result, float]:
        """Tune and run an optimizer, or read what it did.

        Args:
            entrant: Optimizer.
            goal: Training loss that its fastest setting is to be first at, on tuning seeds; its own
                final one if None, as for the reference.

        Returns:
            The result, and the goal.
        """
        began = time.perf_counter()
        entry, baseline = self.entry, entrant.baseline
        search = self._prepare(entrant)
        identity = search.trials.identity | {
            "solved": entry.solved,
            "budget": json.dumps([self.budget.num_random, self.budget.fewest_rates]),
            "reporting_starts": _hash_starts(self.starts),
            "goal": goal,
        }
        place = f"{entry.name}-{entry.horizon}-{self.budget.num_seeds}"
        is_seen = bool(entrant.trained_on) and shares_source(self.task, entrant.trained_on)
        path = result_file(self.folder, place, entrant.name)
        if path.exists():
            kept, result = read_result(path)
            if all(kept.get(name) == value for name, value in identity.items()):
                return replace(result, is_seen=is_seen), float(kept["own_goal"])
        own_goal, setting, fastest, tuning = self._settle(search, goal)
        trainer = search.trials.trainer
        best_runs = self._report(trainer, setting)
        result = Result(
            task=entry.name,
            entrant=entrant.name,
            is_seen=is_seen,
            is_tuned=baseline.is_tuned,
            num_settings=len(tuning.trials) if tuning else 1,
            at_grid_edge=tuning.at_grid_edge if tuning else False,
            setting=setting,
            fastest_setting=fastest,
            best=best_runs,
            fastest=best_runs if fastest == setting else self._report(trainer, fastest),
            num_parameters=_size(jax.tree.map(lambda x: x[0], self.starts.params)),
            state_per_parameter=self._state_per_parameter(baseline, setting),
            **self._cost(trainer, setting),
            seconds=time.perf_counter() - began,
        )
        write_result(path, identity | {"own_goal": own_goal}, result)
        return result, own_goal

    def _prepare(self, entrant: Entrant) -> Search:
        """The search for an entrant's settings, with what is kept of it."""
        num_seeds, horizon = self.budget.num_seeds, self.entry.horizon
        name = entrant.name.replace("/", "_")
        path = cache_file(
            self.folder / "tuning", self.k_tuning, self.task, name, horizon, num_seeds
        )
        return prepare(
            self.task, name, entrant.baseline, self.tuning_starts, horizon=horizon, path=path
        )

    def _settle(
        self, search: Search, goal: float | None
    ) -> tuple[float, dict[str, float], dict[str, float], Tuning | None]:
        """Own goal, best setting, setting that is first at the goal, and how they were found."""
        baseline = search.baseline
        if goal is not None and not baseline.is_tuned and not baseline.is_scheduled:
            only = {"learning_rate": baseline.learning_rates[0], **baseline.defaults}
            return goal, only, only, None  # there is nothing to choose
        tuning = tune_one(
            search, num_random=self.budget.num_random, fewest_rates=self.budget.fewest_rates
        )
        (own_goal,) = np.maximum(targets(tuning.best.curve[None]), self.entry.solved)
        steps = search.trials.steps
        reached = [first_reach(steps, t.curve, goal or own_goal) for t in tuning.trials]
        i = int(np.argmin(reached))
        fastest = tuning.trials[i] if np.isfinite(reached[i]) else tuning.best
        return float(own_goal), dict(tuning.best.config), dict(fastest.config), tuning

    def _report(self, trainer: Trainer, setting: Mapping[str, float]) -> Runs:
        """Runs at a setting on the reporting seeds."""
        (curves,) = trainer.train(_stacked(setting), self.starts, validated=True)
        return runs_of(curves)

    def _cost(self, trainer: Trainer, setting: Mapping[str, float]) -> dict[str, float]:
        """Seconds of a step, and how many steps of SGD it is worth, which takes turns with it."""
        if self.sgd_timer is None:
            sgd = Trainer(self.task, optax.sgd, horizon=self.entry.horizon)
            self.sgd_timer = sgd.timer(np.array([1e-3]), self.starts)
            self.sgd_timer()  # compiles
        timer = trainer.timer(_stacked(setting), self.starts)
        turns = np.array([(timer(), self.sgd_timer()) for _ in range(ROUNDS)])
        own, plain = turns.T
        return {
            "seconds_per_step": float(np.median(own)),
            "relative_cost": float(np.median(own / plain)),
        }

    def _state_per_parameter(self, baseline: Baseline, setting: Mapping[str, float]) -> float:
        """Numbers in an optimizer's state over numbers of parameters."""
        params = jax.tree.map(lambda x: x[0], self.starts.params)
        tx = baseline.make(setting, self.entry.horizon)
        return _size(jax.eval_shape(tx.init, params)) / _size(params)


def _stacked(setting: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name, value in setting.items()}


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _hash_starts(starts: Start) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(starts):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return digest.hexdigest()
