"""Logging: metrics as JSON lines, and trackers of other projects on request."""

import contextlib
import importlib.util
import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2o.runs.folder import RunError, atomic_write

TIMING_FIELDS = ("seconds", "inner_steps_per_second", "compile_seconds")
"""Names of the fields of a line that differ when a run is repeated; no others do."""


class MetricsLog:
    """File of JSON lines, each with its `step`, in which every line written is durable.

    >>> import tempfile
    >>> log = MetricsLog(Path(tempfile.mkdtemp()) / "metrics.jsonl")
    >>> log.write({"step": 10, "meta_loss": float("nan"), "seconds": 2.5})
    >>> read_metrics(log.path)
    [{'step': 10, 'meta_loss': None, 'seconds': 2.5}]

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; NaN and infinities become null.

        Raises:
            RunError: If it cannot be written. A torn line is dropped by `truncate_after`.
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
        """Drop a torn last line and every line after `step`, by an atomic rewrite.

        Raises:
            RunError: If the file cannot be read or written, or a line before the last is no JSON.
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
    """Read the complete lines of a `metrics.jsonl`, in order.

    Raises:
        RunError: If a line before the last is no JSON.
    """
    return [line for _, line in _parse(path, path.read_bytes())]


def compute_seconds(path: Path) -> float:
    """Sum the seconds that the outer steps in a `metrics.jsonl` took, over all sessions.

    Compilation, and steps that were made again after a crash, are not counted.

    Raises:
        RunError: If a line before the last is no JSON.
    """
    return sum(line["seconds"] or 0.0 for line in read_metrics(path))


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


class Tracker:
    """A tracking service that gets a run's metrics and results; calling it logs a line.

    A service that fails does not end the run: the first failure is one warning, and from then on
    nothing is sent.

    >>> tracker = Tracker("mine", log=lambda line: print(dict(line)))
    >>> tracker({"step": 10, "meta_loss": 0.5})
    {'step': 10, 'meta_loss': 0.5}

    Args:
        name: Name of the service, for the warning.
        log: Function called with each line of metrics, as `fit` hands it to `on_metrics`.
        summarize: Function called at the end with the results of the evaluation, JSON-able.
        close: Function called when the run ends.
        on_warning: Function called with one line if the service fails.
    """

    def __init__(
        self,
        name: str,
        log: Callable[[Mapping[str, Any]], object],
        *,
        summarize: Callable[[Mapping[str, Any]], object] = lambda results: None,
        close: Callable[[], object] = lambda: None,
        on_warning: Callable[[str], None] = warnings.warn,
    ) -> None:
        self._name, self._log, self._summarize, self._close = name, log, summarize, close
        self._on_warning = on_warning
        self._has_failed = False

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Log a line of metrics."""
        self._try(lambda: self._log(line))

    def summary(self, results: Mapping[str, Any]) -> None:
        """Log the results of the evaluation, at the end of the run."""
        self._try(lambda: self._summarize(results))

    def close(self) -> None:
        """Send what is left."""
        self._try(self._close)

    def _try(self, action: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            action()
        except Exception as error:  # whatever a service and its network may raise
            self._has_failed = True
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self._on_warning(
                f"{self._name} has failed and gets no more ({reason}); the run goes on."
            )


@contextlib.contextmanager
def tensorboard(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    on_warning: Callable[[str], None] = warnings.warn,
) -> Iterator[Tracker]:
    """Track a run in event files for TensorBoard.

    A resumed run continues in the same folder; TensorBoard drops the steps that it makes again.

    Args:
        folder: Folder for the event files.
        config: Configuration of the run, shown as a text.
        on_warning: Function called with one line if writing fails.

    Raises:
        ValueError: If tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(_missing("tensorboard", "tensorboardX")) from error
    writers: list[Any] = []

    def writer(first_step: int | None = None) -> Any:
        """The writer, which is told the first step that it makes again, if it makes any."""
        if not writers:
            is_resumed = any(folder.glob("events.out.tfevents.*"))
            purge_step = first_step if is_resumed else None
            writers.append(SummaryWriter(str(folder), flush_secs=10, purge_step=purge_step))
            writers[0].add_text("config", json.dumps(dict(config or {})))
        return writers[0]

    metrics = folder / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.exists() else []
    last_step = lines[-1]["step"] if lines else 0

    def log(line: Mapping[str, Any]) -> None:
        nonlocal last_step
        last_step = line["step"]
        for name, value in _scalars(line).items():
            if name != "step":
                writer(last_step).add_scalar(name, value, last_step)

    def summarize(results: Mapping[str, Any]) -> None:
        writer().add_text("results", json.dumps(dict(results)), last_step)
        for name, value in _scalars(results).items():
            writer().add_scalar(f"results/{name}", value, last_step)

    close = lambda: [each.close() for each in writers]
    tracker = Tracker("tensorboard", log, summarize=summarize, close=close, on_warning=on_warning)
    try:
        yield tracker
    finally:
        tracker.close()


@contextlib.contextmanager
def wandb(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    on_warning: Callable[[str], None] = warnings.warn,
) -> Iterator[Tracker]:
    """Track a run with Weights & Biases; WANDB_MODE=offline needs no account.

    A resumed run continues the W&B run whose id lies in the folder, as `wandb/run_id`.

    Args:
        folder: Folder of the run, in which W&B keeps its files.
        config: Configuration of the run.
        on_warning: Function called with one line if logging fails.

    Raises:
        ValueError: If wandb is not installed, or cannot start.
    """
    try:
        import wandb as client
    except ImportError as error:
        raise ValueError(_missing("wandb", "wandb")) from error
    id_file = folder / "wandb" / "run_id"
    id_file.parent.mkdir(parents=True, exist_ok=True)
    if not id_file.exists():
        atomic_write(id_file, uuid.uuid4().hex[:12].encode())
    try:
        run = client.init(
            project="l2o",
            name=folder.name,
            dir=str(folder),
            config=dict(config or {}),
            id=id_file.read_text(),
            resume="allow",
            settings=client.Settings(console="off", silent=True),
        )
    except client.Error as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`log` wandb must be able to start; got {reason} "
            "Run `wandb login`, or set WANDB_MODE=offline."
        ) from error
    tracker = Tracker(
        "wandb",
        lambda line: run.log(_scalars(line), step=line["step"]),
        summarize=lambda results: run.summary.update(dict(results)),
        close=run.finish,
        on_warning=on_warning,
    )
    try:
        yield tracker
    finally:
        tracker.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raise a `ValueError` that says what to install unless every tracker can be imported."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(_missing(name, PACKAGES[name]))


def _missing(name: str, package: str) -> str:
    return (
        f"`log` {name} needs the package {package}; got an environment without it. "
        "Try pip install 'l2o[tracking]'."
    )


PACKAGES: Mapping[str, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Package that each tracker imports."""

TRACKERS: Mapping[str, Callable[..., contextlib.AbstractContextManager[Tracker]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}
"""Context managers by name, each from a folder and a configuration to a `Tracker`."""
