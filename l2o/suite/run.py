"""A suite from its tasks and optimizers to results, which are kept and gone on with."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jax
import numpy as np
import optax

from l2o.datasets.fetch import data_rows, dataset_folder
from l2o.evaluation.baseline import Baseline
from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import check_seeds, first_reach, targets
from l2o.evaluation.training import Trainer, mean_loss
from l2o.evaluation.trials import cache_file, hash_of
from l2o.evaluation.tuning import RATES, TRIALS, Search, Tuning, prepare, tune_one
from l2o.rng import stream
from l2o.suite.entrant import Entrant, check_disjoint, has_seen
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
        ValueError: If the suite names a task twice, data are missing, two optimizers have one name,
            one was meta-trained on a task's family and data, a task cannot be scored, or a number
            is out of range.
    """
    check_names(suite)
    check_seeds(budget.num_seeds)
    check_data(suite)
    others = [entrant for entrant in entrants if entrant.baseline is not reference.baseline]
    names = [entrant.name for entrant in (reference, *others)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`entrants` must have names of their own; got {name} twice, the reference "
                f"included. Try other_{name}."
            )
    made: dict[str, Task] = {}
    if any(entrant.seen for entrant in others):
        made = {entry.name: make_task(entry) for entry in suite}
        check_disjoint(others, made, allow_seen=allow_seen)
    for entry in suite:
        task = made.get(entry.name) or make_task(entry)
        runner = TaskRunner(entry, task, budget, Path(folder), seed)
        result, target = runner.run(reference, None)
        yield result
        for entrant in others:
            yield runner.run(entrant, target)[0]


def make_task(entry: SuiteTask) -> Task:
    """Make the task of a suite's entry.

    Raises:
        ValueError: If it is something else, such as a family.
    """
    task = entry.make()
    if not isinstance(task, Task):
        raise ValueError(
            f"`make` of suite task {entry.name} must give an l2o.Task; got {type(task).__name__}. "
            "Try lambda: family().evaluation[0]."
        )
    return task


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


def check_scored(task: Task, starts: Start) -> None:
    """Raise a `ValueError` unless losses begin between zero and the cap and have a gradient."""

    def at_start(start: Start) -> tuple[dict[str, jax.Array], jax.Array]:
        loss = lambda params: mean_loss(task, params, start.probes, start.instance)
        value, gradient = jax.value_and_grad(loss)(start.params)
        valid = mean_loss(task, start.params, start.valids, start.instance)
        return {"training": value, "validation": valid}, optax.tree.norm(gradient)

    found, slopes = jax.device_get(jax.jit(jax.vmap(at_start))(starts))
    losses = found["training"]
    for name, values in found.items():
        bad = ~(np.isfinite(values) & (values > 0))
        if np.any(bad):
            raise ValueError(
                f"`suite` must have tasks whose {name} loss begins above zero; got {task.name}, "
                f"where one begins at {values[bad][0]}. Add what its loss can be at the least."
            )
        if np.any(values >= task.loss_cap):
            raise ValueError(
                f"`suite` must have tasks whose {name} loss begins below `loss_cap`; got "
                f"{task.name}, where one begins at {np.max(values):g} and the cap is "
                f"{task.loss_cap:g}. Raise the cap."
            )
    if np.any(slopes == 0):
        raise ValueError(
            f"`suite` must have tasks whose loss depends on the parameters; got {task.name}, where "
            f"it is constant at {losses[slopes == 0][0]:g} about a start. Mend or leave it out."
        )


class TaskRunner:
    """One task of a suite, on which optimizers are run one after the other.

    Args:
        entry: Task of the suite.
        task: What it makes.
        budget: How much is spent.
        folder: Folder of results and tunings.
        seed: Seed of everything random.

    Raises:
        ValueError: If losses of the task do not begin above zero, or are constant.
    """

    def __init__(self, entry: SuiteTask, task: Task, budget: Budget, folder: Path, seed: int):
        self.given = task
        # Under its name in the suite, which has each once, as files of tunings go by names.
        self.task = replace(task, name=entry.name, family=task.family or task.name)
        self.entry, self.budget, self.folder = entry, budget, folder
        self.k_tuning, k_report = jax.random.split(stream(seed, "evaluation"))
        self.tuning_starts = draw_starts(self.k_tuning, self.task, 2 * budget.num_seeds)
        self.starts = draw_starts(k_report, self.task, budget.num_seeds, validated=True)
        check_scored(self.task, self.starts)
        self.sgd_timer: Callable[[], float] | None = None

    def run(self, entrant: Entrant, target: float | None) -> tuple[Result, float]:
        """Tune and run an optimizer, or read what it did.

        Args:
            entrant: Optimizer.
            target: Training loss that its fastest setting is to be first at, on tuning seeds; its
                own final one if None, as for the reference.

        Returns:
            The result, and the target.
        """
        began = time.perf_counter()
        search = self._prepare(entrant)
        is_seen = has_seen(entrant, self.given)
        identity = self._identity(entrant, search, target)
        path = result_file(self.folder, self.entry.name, entrant.name, identity)
        if path.exists():
            own_target, result = read_result(path)
            return replace(result, is_seen=is_seen), own_target
        own_target, setting, fastest, tuning = self._settle(search, target)
        trainer = search.trials.trainer
        best_runs = self._report(trainer, setting)
        result = Result(
            task=self.entry.name,
            entrant=entrant.name,
            is_seen=is_seen,
            is_tuned=entrant.baseline.is_tuned,
            num_settings=len(tuning.trials) if tuning else 1,
            at_grid_edge=tuning.at_grid_edge if tuning else False,
            setting=setting,
            fastest_setting=fastest,
            best=best_runs,
            fastest=best_runs if fastest == setting else self._report(trainer, fastest),
            num_parameters=_size(jax.tree.map(lambda x: x[0], self.starts.params)),
            state_per_parameter=self._state_per_parameter(entrant.baseline, setting),
            **self._cost(trainer, setting),
            seconds=time.perf_counter() - began,
            is_kept=False,
        )
        write_result(path, identity, own_target, result)
        return result, own_target

    def _prepare(self, entrant: Entrant) -> Search:
        """The search for an entrant's settings, with what is kept of it."""
        num_seeds, horizon = self.budget.num_seeds, self.entry.horizon
        name = quote(entrant.name, safe="")
        path = cache_file(
            self.folder / "tuning", self.k_tuning, self.task, name, horizon, num_seeds
        )
        try:
            return prepare(
                self.task, name, entrant.baseline, self.tuning_starts, horizon=horizon, path=path
            )
        except ValueError as error:  # that knows these files as a cache
            raise ValueError(str(error).replace("`cache`", "`out`")) from error

    def _identity(self, entrant: Entrant, search: Search, target: float | None) -> dict[str, str]:
        """What a result depends on, by name."""
        baseline = entrant.baseline
        space = {name: asdict(values) for name, values in baseline.space.items()}
        searched = [baseline.learning_rates, space, baseline.is_scheduled]
        settings = _stacked({"learning_rate": 1.0, **baseline.defaults})
        measures = search.trials.trainer.measures(settings, self.starts)
        device = jax.devices()[0]
        return search.trials.identity | {
            "entrant": entrant.name,
            "horizon": str(self.entry.horizon),
            "solved": repr(self.entry.solved),
            "budget": json.dumps(asdict(self.budget)),
            "searched": json.dumps(searched),
            "target": repr(target),
            "reporting_starts": hash_of(self.starts),
            "measures": hashlib.sha256(measures.encode()).hexdigest(),
            "metric_caps": json.dumps(dict(self.task.metric_caps), sort_keys=True),
            "device": f"{device.platform} {device.device_kind}",
        }

    def _settle(
        self, search: Search, target: float | None
    ) -> tuple[float, dict[str, float], dict[str, float], Tuning | None]:
        """Own target, best setting, the one that is first at the target, and their search."""
        baseline = search.baseline
        if target is not None and not baseline.is_tuned and not baseline.is_scheduled:
            only = {"learning_rate": baseline.learning_rates[0], **baseline.defaults}
            return target, only, only, None  # there is nothing to choose
        tuning = tune_one(
            search, num_random=self.budget.num_random, fewest_rates=self.budget.fewest_rates
        )
        (own,) = np.maximum(targets(tuning.best.curve[None]), self.entry.solved)
        goal = own if target is None else target
        reached = [first_reach(search.trials.steps, t.curve, goal) for t in tuning.trials]
        i = int(np.argmin(reached))
        fastest = tuning.trials[i] if np.isfinite(reached[i]) else tuning.best
        return float(own), dict(tuning.best.config), dict(fastest.config), tuning

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
