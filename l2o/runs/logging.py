"""What a run reports: one JSON line a chunk, and other people's trackers on request."""

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2o.runs.folder import RunError, atomic_write

TIMING_FIELDS = ("seconds", "inner_steps_per_second", "compile_seconds")
"""Fields of a line that differ when a run is repeated; no others do."""

Track = Callable[[Mapping[str, Any]], None]
"""Takes a line, as `fit` hands it to `on_metrics`."""


class MetricsLog:
    """A file of JSON lines, each with its `step`, in which every line written is durable."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line; NaN and infinities become null.

        Raises:
            RunError: if it cannot be written. A torn line is dropped by `truncate_after`.
        """
        numbers = {name: _finite_or_none(value) for name, value in line.items()}
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(numbers, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"metrics could not be written to {self.path} ({error.strerror or error}). "
                "Free space, then continue with --resume."
            ) from error

    def truncate_after(self, step: int) -> None:
        """Drops a torn last line and every line after `step`, by an atomic rewrite.

        Raises:
            RunError: if the file cannot be read or written, or a line before the last is no JSON.
        """
        try:
            if not self.path.exists():
                return
            content = self.path.read_bytes()
            kept = [text for text, line in _parse(self.path, content) if line["step"] <= step]
            if (shorter := b"".join(kept)) != content:
                atomic_write(self.path, shorter)
        except OSError as error:
            raise RunError(
                f"metrics could not be rewritten at {self.path} ({error.strerror or error}). "
                "Free space, then continue with --resume."
            ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a `metrics.jsonl`, in order.

    Raises:
        RunError: if a line before the last is no JSON.
    """
    return [line for _, line in _parse(path, path.read_bytes())]


def _parse(path: Path, content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    lines = []
    *complete, _torn = content.split(b"\n")
    for number, text in enumerate(complete, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"line {number} of {path} is damaged. Delete that line, then continue."
            ) from error
        lines.append((text + b"\n", line))
    return lines


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


@contextlib.contextmanager
def tensorboard(folder: Path, config: Mapping[str, Any] | None = None) -> Iterator[Track]:
    """Event files for TensorBoard under `folder`, with the configuration as a text.

    Raises:
        ValueError: if tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(_missing("tensorboard", "tensorboardX")) from error
    writer = SummaryWriter(str(folder), flush_secs=10)
    writer.add_text("config", json.dumps(dict(config or {})))

    def track(line: Mapping[str, Any]) -> None:
        for name, value in _scalars(line).items():
            if name != "step":
                writer.add_scalar(name, value, line["step"])

    try:
        yield track
    finally:
        writer.close()


@contextlib.contextmanager
def wandb(folder: Path, config: Mapping[str, Any] | None = None) -> Iterator[Track]:
    """A Weights & Biases run, with its files under `folder`; WANDB_MODE=offline needs no account.

    Raises:
        ValueError: if wandb is not installed, or cannot start.
    """
    try:
        import wandb as client
    except ImportError as error:
        raise ValueError(_missing("wandb", "wandb")) from error
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = client.init(
            project="l2o",
            name=folder.name,
            dir=str(folder),
            config=dict(config or {}),
            settings=client.Settings(console="off", silent=True),
        )
    except client.Error as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`log` wandb must be able to start; got {reason} "
            "Run `wandb login`, or set WANDB_MODE=offline."
        ) from error

    try:
        yield lambda line: run.log(_scalars(line), step=line["step"])
    finally:
        run.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raises a `ValueError` that says what to install unless every tracker can be imported."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(_missing(name, PACKAGES[name]))


def _missing(name: str, package: str) -> str:
    return (
        f"`log` {name} needs the package {package}; got an environment without it. "
        "Try pip install 'l2o[tracking]'."
    )


PACKAGES: Mapping[str, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""What each tracker needs to import."""

TRACKERS: Mapping[str, Callable[..., contextlib.AbstractContextManager[Track]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}
"""Context managers by name, each from a folder and a configuration to an `on_metrics`."""
