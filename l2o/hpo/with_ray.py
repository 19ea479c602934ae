"""Ray Tune's population based training (Jaderberg et al. 2017).

Members train in Ray's worker processes, on CPUs. What changes their hyperparameters as they go is a
schedule in the end: the history of a member's rate and momentum.
"""

import logging
import os
import random
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from l2o.distributed.processes import cores
from l2o.evaluation.starts import Start
from l2o.hpo.schedule import SPACE
from l2o.hpo.search import Search, Trainer
from l2o.runs.folder import RunError
from l2o.task import Task

if TYPE_CHECKING:
    from ray.tune import Trainable

SEARCHED = ("learning_rate", "friction")
"""Hyperparameters that members search, and hold between two exchanges."""


def ray_pbt(search: Search, seed: int, folder: Path) -> None:
    """Train a population that fills the budget, of which the worst quarter copies the best.

    Raises:
        RunError: If a member failed, or Ray did.
    """
    del folder
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # or `verbose=0` is not quiet
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # or Ctrl-C ends the search as if it were done
    from ray import tune
    from ray.exceptions import RayError
    from ray.tune.error import TuneError
    from ray.tune.schedulers import PopulationBasedTraining

    size = search.budget // search.trainer.horizon
    random.seed(seed)  # what Ray explores with; in which order members report is not seeded
    np.random.seed(seed)  # noqa: NPY002
    samplers = {name: tune.loguniform(*SPACE[name]) for name in SEARCHED}

    class Reports(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict, **_: Any):
            rows = np.frombuffer(bytes.fromhex(result["schedule"]), np.float32).reshape(-1, 2)
            search.record(trial.trial_id, result["num_steps"], result["step"], result["loss"], rows)

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        return {k: float(np.clip(config[k], *SPACE[k])) for k in SEARCHED}

    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="loss",
        mode="min",
        perturbation_interval=1,
        hyperparam_mutations=dict(samplers),
        custom_explore_fn=explore,
        synch=True,
    )
    trainer = search.trainer
    sent = {"task": trainer.task, "start": packed(trainer.start), "horizon": trainer.horizon}
    with tempfile.TemporaryDirectory() as storage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX's about forks, which only start programs here
        try:
            connect()
            grid = tune.Tuner(
                tune.with_resources(tune.with_parameters(member(), **sent), {"cpu": 1}),
                param_space=samplers,
                tune_config=tune.TuneConfig(
                    num_samples=size, scheduler=scheduler, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    stop={"training_iteration": len(trainer.reports)},
                    storage_path=storage,
                    verbose=0,
                    callbacks=[Reports()],
                    # The others would wait for ever for the reports of one that has died.
                    failure_config=tune.FailureConfig(fail_fast=True),
                ),
            ).fit()
        except (RayError, TuneError, RuntimeError) as error:
            raise RunError(failure("Ray failed", error)) from error
    if grid.errors:
        number = len(grid.errors)
        raise RunError(failure(f"{number} of {size} members failed", grid.errors[0]))
    if search.budget_used < size * trainer.horizon:
        raise RunError("ray_pbt was stopped early. Leave it out by --engines.")


def failure(what: str, error: Exception) -> str:
    """Say in one line what went wrong in Ray."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"ray_pbt: {what}: {lines[-1][:300]}. Leave it out by --engines."


def connect() -> None:
    """Start Ray in this process, on the cores it may use, unless it runs."""
    import ray

    if not ray.is_initialized():
        ray.init(
            num_cpus=len(cores()),
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"JAX_PLATFORMS": "cpu"}},
        )


def member() -> "type[Trainable]":
    """Make the class of a member; Ray is imported only by who uses it."""
    from ray import tune

    class Member(tune.Trainable):
        """A trial that can be saved, copied and go on with other hyperparameters."""

        def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, config: dict[str, Any], task: Task, start: Start, horizon: int
        ) -> None:
            self.trainer = Trainer(task, unpacked(start), horizon)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.point = new_config
            self.at, self.run = 0, self.trainer.begin()
            self.rows = np.zeros((self.trainer.horizon, 2), np.float32)
            return True

        def step(self) -> dict[str, Any]:
            before = self.at
            self.at = next(step for step in self.trainer.reports if step > before)
            self.rows[before:] = self.point["learning_rate"], 1.0 - self.point["friction"]
            self.run, loss = self.trainer.advance(self.run, self.rows, before, self.at)
            return {
                "loss": loss,
                "step": self.at,
                "num_steps": self.at - before,
                "schedule": self.rows.tobytes().hex(),
            }

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            del checkpoint_dir
            return {"at": self.at, "run": jax.device_get(self.run), "rows": self.rows.copy()}

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            assert checkpoint is not None
            self.at, self.run = checkpoint["at"], checkpoint["run"]
            self.rows = checkpoint["rows"].copy()

    return Member


class KeyData(NamedTuple):
    """A typed key as numbers, which can be pickled."""

    numbers: np.ndarray


def packed(start: Start) -> Start:
    """Turn a start into NumPy arrays, to be sent to another process."""

    def pack(leaf: jax.Array) -> np.ndarray | KeyData:
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return KeyData(np.asarray(jax.random.key_data(leaf))) if is_key else np.asarray(leaf)

    return jax.tree.map(pack, start)


def unpacked(start: Start) -> Start:
    """Undo `packed`."""
    is_key = lambda leaf: isinstance(leaf, KeyData)
    unpack = lambda leaf: jax.random.wrap_key_data(leaf.numbers) if is_key(leaf) else leaf
    return jax.tree.map(unpack, start, is_leaf=is_key)
