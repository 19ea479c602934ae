"""What one optimizer did on one task of a suite, and the file that keeps it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from l2o.evaluation.training import Curves
from l2o.runs.folder import atomic_write

DIGITS = 6
"""Significant digits of losses in files."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Training runs at one setting, on the reporting seeds.

    Attributes:
        steps: Shape (probes,), inner steps before each probe.
        train: Training loss on fixed batches, shape (seeds, probes).
        valid: Validation loss on fixed batches, shape (seeds, probes).
        valid_end: Loss and metrics on the validation split at the end, each of shape (seeds,).
        test_end: The same on the test split.
        diverged: Shape (seeds,), whether the run ended above the task's cap or not finite.
    """

    steps: np.ndarray
    train: np.ndarray
    valid: np.ndarray
    valid_end: Mapping[str, np.ndarray]
    test_end: Mapping[str, np.ndarray]
    diverged: np.ndarray


def runs_of(curves: Curves) -> Runs:
    """What is kept of curves that were validated and tested, with six significant digits."""
    return Runs(
        steps=curves.steps,
        train=_rounded(curves.probe_loss),
        valid=_rounded(curves.valid_loss),
        valid_end={name: _rounded(values) for name, values in curves.valid.items()},
        test_end={name: _rounded(values) for name, values in curves.test.items()},
        diverged=curves.diverged,
    )


@dataclass(frozen=True, eq=False)
class Result:
    """What one optimizer did on one task.

    Attributes:
        task: Name of the task in the suite.
        entrant: Name of the optimizer.
        is_seen: Whether it was meta-trained on the task's family and data.
        is_tuned: Whether anything was searched for.
        num_settings: Settings that were tried.
        at_grid_edge: Whether a better rate may lie beyond those that were tried.
        setting: Hyperparameters that were lowest at the end on tuning seeds.
        fastest_setting: Those that were first at the reference's final training loss there.
        best: Runs at the first.
        fastest: Runs at the second.
        num_parameters: Numbers that the task trains.
        state_per_parameter: Numbers in the optimizer's state for each of them.
        seconds_per_step: Wall-clock seconds of an inner step and seed, with all seeds together.
        relative_cost: The same over that of plain SGD on the same task, measured in turns.
        seconds: Wall-clock seconds that all of this took, with tuning and compilation; what was
            kept of a tuning took none.
        is_kept: Whether it was read from a file, and all of this was done before.
    """

    task: str
    entrant: str
    is_seen: bool
    is_tuned: bool
    num_settings: int
    at_grid_edge: bool
    setting: Mapping[str, float]
    fastest_setting: Mapping[str, float]
    best: Runs
    fastest: Runs
    num_parameters: int
    state_per_parameter: float
    seconds_per_step: float
    relative_cost: float
    seconds: float
    is_kept: bool = False


def result_file(folder: Path, task: str, entrant: str, identity: Mapping[str, str]) -> Path:
    """The file of a result, whose name tells all that it depends on from anything else.

    Args:
        folder: Folder of the suite.
        task: Name of the task.
        entrant: Name of the optimizer, which may be a path.
        identity: What the result depends on, by name.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "results" / task / f"{quote(entrant, safe='')}-{digest}.json"


def write_result(path: Path, identity: Mapping[str, str], target: float, result: Result) -> None:
    """Write a result's file, as a whole or not at all.

    Args:
        path: File to write.
        identity: What the result depends on, by name.
        target: Training loss that others are to be first at, if it is the reference's.
        result: The result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"identity": identity, "target": target, "result": _plain(asdict(result))}
    atomic_write(path, f"{json.dumps(content)}\n".encode())


def read_result(path: Path) -> tuple[float, Result]:
    """Read a result's file: the target of others and the result.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_text())
        found = dict(content["result"])
        found |= {name: _read_runs(found[name]) for name in ("best", "fastest")}
        found["is_kept"] = True
        return float(content["target"]), Result(**{f.name: found[f.name] for f in fields(Result)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`out` must hold results of a suite; got {path}, which cannot be read. Delete it."
        ) from error


def _read_runs(content: Mapping[str, Any]) -> Runs:
    def at_end(split: str) -> dict[str, np.ndarray]:
        return {name: np.array(v, np.float64) for name, v in content[split].items()}

    return Runs(
        steps=np.array(content["steps"]),
        train=np.array(content["train"], np.float64),
        valid=np.array(content["valid"], np.float64),
        valid_end=at_end("valid_end"),
        test_end=at_end("test_end"),
        diverged=np.array(content["diverged"], bool),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _rounded(values: np.ndarray) -> np.ndarray:
    flat = [float(f"{value:.{DIGITS}g}") for value in np.ravel(values)]
    return np.reshape(np.array(flat, np.float64), np.shape(values))
