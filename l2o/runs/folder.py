"""Run folders: where the files of a run lie, written whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


PAUSES = (0.1, 1.0)
"""Seconds to wait before a file is renamed once more."""

EARLIER_STEPS = "earlier_steps"
"""Name, in a configuration, of the numbers of steps that a run was for until it was made longer."""


class RunError(RuntimeError):
    """Error of a run that cannot go on; the message is one line that says what to do."""


class DivergenceError(RunError):
    """Error of a run in which no loss is finite any more."""


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, make it durable, and rename it.

    After a crash at any moment `path` holds its old content or the new one.

    Raises:
        OSError: If it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, path, content)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _rename(temporary: Path, path: Path, content: bytes) -> None:
    """Rename a file; over a network, and where another program reads, the first try may fail.

    A server that has renamed it and is asked again, as its answer was lost, knows no such file.
    """
    for wait in (*PAUSES, None):
        try:
            return os.replace(temporary, path)
        except OSError as error:
            is_lost = isinstance(error, FileNotFoundError)
            if is_lost and path.exists() and path.read_bytes() == content:
                return None
            if wait is None:
                raise
            time.sleep(wait)
    return None


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where folders can be opened and have such a thing."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunFolder:
    """Layout of a run on disk; `RunFolder.open` starts or continues one.

    >>> RunFolder(Path("runs/mine")).theta.name
    'theta.safetensors'

    Attributes:
        path: Path of the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.json"

    @property
    def lock(self) -> Path:
        """Empty file that the process which writes the run has locked."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, one folder each, named by its step."""
        return self.path / "checkpoints"

    @property
    def profile(self) -> Path:
        """Profiler trace of one chunk of outer steps."""
        return self.path / "profile"

    @property
    def theta(self) -> Path:
        """Release file of the last outer step."""
        return self.path / "theta.safetensors"

    @property
    def best(self) -> Path:
        """Release file of the checkpoint with the lowest score."""
        return self.path / "best.safetensors"

    @property
    def validation(self) -> Path:
        """Scores on validation tasks, one JSON object a line."""
        return self.path / "validation.jsonl"

    @property
    def validated(self) -> Path:
        """Release file of the checkpoint with the highest validation score."""
        return self.path / "validated.safetensors"

    @property
    def provenance(self) -> Path:
        """Versions and device with which the run began."""
        return self.path / "provenance.json"

    @property
    def report_json(self) -> Path:
        """Results of the evaluation."""
        return self.path / "report.json"

    @property
    def report_html(self) -> Path:
        """Results of the evaluation, to look at."""
        return self.path / "report.html"

    @contextlib.contextmanager
    def locked(self, on_warning: Callable[[str], None]) -> Iterator[None]:
        """Keep other processes out of the folder until this one leaves the context or ends.

        Args:
            on_warning: Function called with one line if the file system cannot lock.

        Raises:
            ValueError: If another process has the folder.
        """
        with open(self.lock, "ab") as file:
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "this system has no flock")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise ValueError(
                        f"`run_dir` must not be in use; got {self.path}, which a run is writing. "
                        "Wait for it or stop it, or choose another --run-dir."
                    ) from error
                on_warning(
                    f"{self.path} cannot be locked ({error.strerror or error}): "
                    "do not start a second run in it."
                )
            yield

    def recorded(self) -> dict[str, Any]:
        """Read the configuration that the run was begun with, or was last made longer with.

        Raises:
            ValueError: If it cannot be read.
        """
        try:
            config = json.loads(self.config.read_bytes())
            if not isinstance(config, dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise ValueError(
                f"`resume` needs the config.json of a run; got {self.config} ({reason}). "
                "Choose another --run-dir."
            ) from error
        return config

    def make_longer(self, config: Mapping[str, Any]) -> int | None:
        """Record that a run goes on to more steps than it was begun for, which its lock allows.

        Args:
            config: Resolved configuration that `open` has accepted.

        Returns:
            Steps that it was for until now, or None if there are no more than these.

        Raises:
            ValueError: If it is for more than these.
        """
        before = self.recorded()
        steps = before.get("steps")
        if steps == config.get("steps"):
            return None
        if steps > config["steps"]:  # since `open`, which had no lock yet
            raise ValueError(
                f"`steps` must be at least {steps}, to which another process has made the run in "
                f"{self.path} longer; got {config['steps']}. Try steps={steps}."
            )
        earlier = [*before.get(EARLIER_STEPS, []), steps]
        content = {**config, EARLIER_STEPS: earlier}
        atomic_write(self.config, json.dumps(content, indent=2).encode() + b"\n")
        return steps

    @staticmethod
    def open(path: str | Path, config: Mapping[str, Any], *, resume: bool = False) -> "RunFolder":
        """Start a run in a new or empty folder or, with `resume`, continue one.

        A run that was killed before its first checkpoint continues from the start. One is continued
        with the configuration that it has, but for `steps`, of which there may be more.

        Args:
            path: Path of the folder; created, with its parents, if it is not there.
            config: Resolved configuration, JSON-able; nested fields are named `a.b`.
            resume: Whether to continue.

        Raises:
            ValueError: If the folder holds files already, cannot be written, holds no run to
                continue, or holds one with another configuration. Nothing has been written then.
        """
        folder = RunFolder(Path(path).absolute())
        try:
            text = json.dumps(dict(config), indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`config` must be JSON-able; got {config!r} ({error}). "
                "Use numbers, strings, lists and dicts."
            ) from error
        if resume:
            _check_resumable(folder, json.loads(text))
        else:
            _create(folder, text)
        return folder


def _create(folder: RunFolder, config: str) -> None:
    path = folder.path
    made: Path | None = None
    try:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(20, "it is a file")
        if path.exists() and not _is_empty(path):
            raise ValueError(
                f"`run_dir` must be new or empty; got {path}, which holds files. "
                "Add --resume to continue it, or choose another --run-dir."
            )
        missing = [p for p in (path, *path.parents) if not p.exists()]
        made = missing[-1] if missing else None
        path.mkdir(parents=True, exist_ok=True)
        atomic_write(folder.config, config.encode())
    except OSError as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise ValueError(
            f"`run_dir` must be a folder that can be written; got {path} "
            f"({error.strerror or error}). Choose another --run-dir."
        ) from error


def _is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but what a crash may have left while it was created."""
    return all(p.name.startswith(".") and p.suffix == ".tmp" for p in path.iterdir())


def _check_resumable(folder: RunFolder, config: dict) -> None:
    path = folder.path
    if not path.is_dir() or _is_empty(path):
        raise ValueError(
            f"`resume` needs a run to continue; got {path}, which holds none. "
            "Drop --resume to start one there, or correct --run-dir."
        )
    before = folder.recorded()
    before.pop(EARLIER_STEPS, None)
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(
            f"`run_dir` must be a folder that can be written; got {path} (Permission denied). "
            "Choose another --run-dir."
        )
    old, new = flatten(before), flatten(config)
    if isinstance(old.get("steps"), int) and new.get("steps", 0) > old["steps"]:
        old["steps"] = new["steps"]
    changed = [
        f"{f}{'=' if f in old else ' '}{_show(old, f)} (now {_show(new, f)})"
        for f in dict.fromkeys((*old, *new))
        if _show(old, f) != _show(new, f)
    ]
    if changed:
        raise ValueError(
            f"`resume` needs the configuration of the run in {path}; it was started with "
            f"{', '.join(changed)}. Leave out what the run was started with, or use another "
            "--run-dir without --resume."
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested fields, which are then named `a.b`."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def _show(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "not set"
