"""Settings of a baseline that were tried, and the file that keeps them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2o.evaluation.seen import task_signature
from l2o.evaluation.starts import Start
from l2o.evaluation.training import Trainer
from l2o.runs.folder import atomic_write
from l2o.task import Key, Task

AT_ONCE = 4
"""Settings that train side by side, each on every seed."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Training runs at one setting.

    Attributes:
        config: Hyperparameters by name.
        final_loss: Final losses, shape (seeds,); a diverged run counts as the task's cap.
        diverged: Fraction of the runs that diverged.
        curve: Median over seeds of the probe loss, shape (probes,).
    """

    config: Mapping[str, float]
    final_loss: np.ndarray
    diverged: float
    curve: np.ndarray

    @property
    def median(self) -> float:
        """Median over seeds of the final loss, which is what tuning lowers."""
        return float(np.median(self.final_loss))

    @property
    def learning_rate(self) -> float:
        """The learning rate, of a control the factor of its updates."""
        return self.config["learning_rate"]


class Trials:
    """Settings that were tried, in the order of the search, and kept in a file if there is one."""

    def __init__(
        self,
        trainer: Trainer,
        starts: Start,
        defaults: Mapping[str, float],
        path: Path | None,
        program: str | None = None,
    ):
        self.trainer, self.starts, self.defaults, self.path = trainer, starts, defaults, path
        self.steps = np.unique([*range(0, trainer.horizon, trainer.stride), trainer.horizon])
        self.tried: list[Trial] = []
        self.on_tried: Callable[[Trials], None] = lambda trials: None
        self.identity = self._identity(program or self._program()) if path else {}
        self.kept = read_trials(path, self.identity) if path and path.exists() else []

    def attempt(self, configs: Sequence[Mapping[str, float]]) -> None:
        """Train at some settings, `AT_ONCE` at a time; hyperparameters left out are defaults."""
        configs = [{**self.defaults, **config} for config in configs]
        for i in range(0, len(configs), AT_ONCE):
            self._attempt_at_once(configs[i : i + AT_ONCE])

    def _attempt_at_once(self, configs: Sequence[dict[str, float]]) -> None:
        known = {key_of(trial.config): trial for trial in self.kept}
        missing = [config for config in configs if key_of(config) not in known]
        if missing:
            padded = [*missing, *[missing[-1]] * (AT_ONCE - len(missing))]
            settings = {name: np.array([c[name] for c in padded]) for name in missing[0]}
            found = self.trainer.train(settings, self.starts, splits=())
            for config, curves in zip(missing, found, strict=False):
                known[key_of(config)] = Trial(
                    config,
                    rounded(curves.final_loss),
                    float(np.mean(curves.diverged)),
                    rounded(np.median(curves.probe_loss, axis=0)),
                )
        self.tried += [known.pop(key_of(config)) for config in configs]
        used = {key_of(config) for config in configs}
        self.kept = [trial for trial in self.kept if key_of(trial.config) not in used]
        if missing and self.path:
            write_trials(self.path, self.identity, [*self.tried, *self.kept])
        self.on_tried(self)

    def _program(self) -> str:
        """A hash of the program that trains, the same for all starts of one shape."""
        configs = {name: np.full(AT_ONCE, v) for name, v in self.defaults.items()}
        program = self.trainer.program(configs | {"learning_rate": np.ones(AT_ONCE)}, self.starts)
        return hashlib.sha256(program.encode()).hexdigest()

    def _identity(self, program: str) -> dict[str, str]:
        """What a tuning depends on, by name."""
        task = self.trainer.task
        starts = self.starts._replace(valids=(), tests=())
        return {
            **{name: version(name) for name in ("l2o", "jax", "optax")},
            "data": task_signature(task),
            "starts": hash_of(starts, repr(float(task.loss_cap))),
            "program": program,
        }

    def on(self, starts: Start, path: Path | None) -> "Trials":
        """Nothing tried yet, by the same trainer on other starts, kept in another file."""
        return Trials(self.trainer, starts, self.defaults, path, self.identity.get("program"))

    @property
    def whole(self) -> list[Trial]:
        """Trials whose schedules go to the end of the run."""
        return [trial for trial in self.tried if trial.config["horizon_fraction"] == 1.0]

    @property
    def best(self) -> Trial:
        """The trial with the lowest median final loss; of equal ones, the first."""
        return min(self.whole, key=lambda trial: trial.median)

    def rates_beside(self, trial: Trial) -> list[float]:
        """Rates that were tried with the other hyperparameters of a trial, in order."""
        return sorted(other.learning_rate for other in beside(self.tried, trial))

    def is_at_edge(self, trial: Trial) -> bool:
        """Whether no lower or no higher rate was tried with a trial's other hyperparameters."""
        rates = self.rates_beside(trial)
        return trial.learning_rate in (rates[0], rates[-1])


def key_of(config: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """A config as what can be looked up."""
    return tuple(sorted(config.items()))


def beside(trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    """Those of some trials that differ from one in nothing but the rate."""

    def others(config: Mapping[str, float]) -> dict[str, float]:
        return {k: v for k, v in config.items() if k != "learning_rate"}

    return [other for other in trials if others(other.config) == others(trial.config)]


def without_key_type(leaf: jax.Array) -> jax.Array:
    """The numbers of a typed random key; another array as it is."""
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def hash_of(tree: Any, text: str = "") -> str:
    """A sha256 in hexadecimal of a text and of all arrays of a tree, which may be random keys."""
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(without_key_type(leaf)).tobytes())
    return digest.hexdigest()


def cache_file(
    cache: str | Path, key: Key, task: Task, name: str, horizon: int, num_seeds: int
) -> Path:
    """The file of a tuning.

    Raises:
        ValueError: If the cache is a file.
    """
    if Path(cache).is_file():
        raise ValueError(
            f"`cache` must be a folder; got {cache}, which is a file. Try cache='runs/tuning'."
        )
    digest = hashlib.sha256(np.asarray(without_key_type(key)).tobytes()).hexdigest()[:8]
    return Path(cache) / f"{task.name}-{horizon}-{num_seeds}-{digest}" / f"{name}.json"


def rounded(values: np.ndarray) -> np.ndarray:
    """Six significant digits, as the file keeps them, so that a resumed search decides alike."""
    return np.array([float(f"{value:.6g}") for value in values])


def write_trials(path: Path, identity: Mapping[str, str], trials: Sequence[Trial]) -> None:
    """Write a tuning's file, as a whole or not at all."""
    rows = [
        {
            "config": dict(trial.config),
            "final_loss": trial.final_loss.tolist(),
            "diverged": trial.diverged,
            "curve": trial.curve.tolist(),
        }
        for trial in trials
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    content = f'{{"identity": {json.dumps(dict(identity))},\n"trials": [\n{lines}\n]}}\n'
    atomic_write(path, content.encode())


def read_trials(path: Path, identity: Mapping[str, str]) -> list[Trial]:
    """Read a tuning's file.

    Raises:
        ValueError: If it cannot be read, or is of other versions, another task or other data.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        trials = [
            Trial(
                row["config"],
                np.array(row["final_loss"]),
                row["diverged"],
                np.array(row["curve"]),
            )
            for row in content["trials"]
        ]
        found = dict(content["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`cache` must hold tunings; got {path}, which cannot be read. Delete it."
        ) from error
    for name, value in identity.items():
        if found.get(name) != value:
            raise ValueError(
                f"`cache` must be of these versions, task, data and method; got {path}, whose "
                f"{name} is {str(found.get(name))[:12]}, not {value[:12]}. Try another folder, or "
                "delete it."
            )
    return trials
