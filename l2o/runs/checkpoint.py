"""Checkpoints: written by orbax, complete only with a manifest, verified when read.

A checkpoint is a folder `<step>/` with orbax's files under `state/` and, written last, a
`manifest.json`: the sha256 of every file, the shape and dtype of every array (orbax would cast
silently), and the score that decides which checkpoint is the best. The manifest has its own sha256.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2o.tree import from_numpy, is_key, named_leaves, to_numpy
from l2o.runs.folder import RunError, atomic_write, sync_folder

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state"


class Checkpoints:
    """The checkpoints of a run: the last `keep`, and the one with the lowest score.

    Args:
        folder: where they lie; made with the first one.
        keep: how many of the latest to keep.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1; got {keep}. Try keep=2.")
        self.folder = folder.absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(p.name) for p in self._folders() if (p / MANIFEST).exists())

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Saves a state, then removes what need not be kept.

        Args:
            step: its name; a checkpoint of that step is replaced.
            state: any pytree of arrays and typed keys.
            score: the lower the better; None or non-finite is never the best.

        Raises:
            RunError: if it cannot be written; the checkpoints from before stay.
        """
        path = self.folder / str(step)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(path)
            arrays = {name: to_numpy(leaf) for name, leaf in named_leaves(state).items()}
            _reserve(path, sum(array.nbytes for array in arrays.values()))
            _orbax_save(path / STATE, {k: v for k, v in arrays.items() if v.size})
            manifest = {
                "format": FORMAT,
                "score": score if score is not None and math.isfinite(score) else None,
                "leaves": _signature(state),
                "files": {name: _sha256(path / name, sync=True) for name in _files(path)},
            }
            atomic_write(path / MANIFEST, _sealed(manifest))
            sync_folder(self.folder)
        except Exception as error:  # orbax and tensorstore raise many kinds
            shutil.rmtree(path, ignore_errors=True)
            raise RunError(
                f"checkpoint {path} could not be written ({_reason(error)}); {self.last_good()}. "
                "Free space, then continue with --resume."
            ) from error
        self._prune()

    def restore(self, target: Any, on_warning: Callable[[str], None]) -> tuple[int, Any] | None:
        """The newest intact checkpoint as (step, state), or None if there is no checkpoint.

        Remains of interrupted saves are removed. A damaged checkpoint is reported and passed
        over; it is removed once an older one has been read, from which it will be made again.

        Args:
            target: the state's tree, with anything that has a shape and dtype at its leaves.
            on_warning: takes one line for each damaged checkpoint.

        Raises:
            RunError: if all are damaged, or one holds other arrays than `target`.
        """
        for path in self._folders():
            if not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)
        damaged: list[str] = []
        for step in reversed(self.steps()):
            path = self.folder / str(step)
            try:
                manifest = _verified(path)
                _check_signature(path, manifest["leaves"], _signature(target))
                state = _read(path / STATE, target)
            except RunError:
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds
                damaged.append(f"checkpoint {path} is damaged ({_reason(error)})")
                continue
            for message in damaged:
                on_warning(f"{message}: continuing from step {step} instead, to the same result.")
            for later in (s for s in self.steps() if s > step):
                _remove(self.folder / str(later))
            return step, state
        if damaged:
            raise RunError(
                f"{'; '.join(damaged)}; no intact checkpoint is left. "
                f"Remove {self.folder} to start the run anew with --resume, or use a copy."
            )
        return None

    def last_good(self) -> str:
        """Words for error messages: which checkpoint a run can continue from."""
        steps = self.steps()
        return f"the last good checkpoint is at step {steps[-1]}" if steps else "none is saved yet"

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if path.name.isdecimal()]

    def _prune(self) -> None:
        steps = self.steps()
        scores = {step: self._score(step) for step in steps}
        best = min(steps, key=lambda step: (scores[step], -step))
        for step in steps[: -self.keep]:
            if step != best:
                _remove(self.folder / str(step))

    def _score(self, step: int) -> float:
        try:
            score = _unsealed((self.folder / str(step) / MANIFEST).read_bytes())["score"]
        except (OSError, ValueError):
            return math.inf
        return math.inf if score is None else score


def _remove(path: Path) -> None:
    """Removes a checkpoint; without its manifest it counts as none, however far this gets."""
    with contextlib.suppress(OSError):
        (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _signature(tree: Any) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in named_leaves(tree).items()}


def _check_signature(path: Path, found: dict[str, str], wanted: dict[str, str]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise RunError(
                f"checkpoint {path} does not fit this run: {name} is "
                f"{found.get(name, 'absent')}, not {wanted.get(name, 'absent')}. Continue with the "
                "version of the code that wrote it, or choose another --run-dir."
            )


def _read(path: Path, target: Any) -> Any:
    names, tree = list(named_leaves(target)), jax.tree.structure(target)
    leaves = jax.tree.leaves(target)
    as_data = lambda x: jax.eval_shape(jax.random.key_data, x) if is_key(x) else x
    empty = {
        name: np.empty(shape.shape, shape.dtype)
        for name, shape in zip(names, map(as_data, leaves), strict=True)
    }
    arrays = empty | _orbax_restore(path, {k: v for k, v in empty.items() if v.size})
    return tree.unflatten(from_numpy(arrays[n], x) for n, x in zip(names, leaves, strict=True))


def _orbax_save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    log = logging.getLogger("absl")
    log.addFilter(_silent)  # what goes wrong in orbax's threads also comes as an exception
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, args=ocp.args.StandardSave(arrays))
    finally:
        log.removeFilter(_silent)


def _checkpointer() -> Any:
    """Orbax's, of this process alone: the others have no part in what process 0 writes."""
    import orbax.checkpoint as ocp  # half a second, which those who only apply need not wait

    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _silent(record: logging.LogRecord) -> bool:
    del record
    return False


def _reserve(path: Path, num_bytes: int) -> None:
    """Raises a plain `OSError` if there is no room, which orbax would report at great length."""
    path.mkdir()
    with open(path / ".room.tmp", "wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, num_bytes + 65536)
    (path / ".room.tmp").unlink()


def _orbax_restore(path: Path, target: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with _checkpointer() as checkpointer:
        return checkpointer.restore(path, args=ocp.args.StandardRestore(target))


def _files(path: Path) -> list[str]:
    files = (p.relative_to(path) for p in path.rglob("*") if not p.is_dir())
    return sorted(str(p) for p in files if str(p) not in (MANIFEST, f".{MANIFEST}.tmp"))


def _sha256(path: Path, *, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(manifest: dict[str, Any]) -> bytes:
    body = json.dumps(manifest, indent=1, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"sha256": digest, "manifest": manifest}, indent=1, sort_keys=True).encode()


def _unsealed(content: bytes) -> dict[str, Any]:
    sealed = json.loads(content)
    if not isinstance(sealed, dict) or _sealed(sealed.get("manifest", {})) != content:
        raise ValueError(f"{MANIFEST} does not match its own sha256")
    return sealed["manifest"]


def _verified(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, or a `ValueError` that names a file that differs from it."""
    manifest = _unsealed((path / MANIFEST).read_bytes())
    if manifest["format"] != FORMAT:
        raise RunError(
            f"checkpoint {path} has format {manifest['format']}, not {FORMAT}. "
            "Continue with the version of l2o that wrote it."
        )
    files = manifest["files"]
    for name in sorted(files.keys() | set(_files(path))):
        if not (path / name).exists():
            raise ValueError(f"{name} is missing")
        if name not in files:
            raise ValueError(f"{name} is not in its manifest")
        if _sha256(path / name) != files[name]:
            raise ValueError(f"{name} differs from its manifest")
    return manifest


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return " ".join((text or str(error) or type(error).__name__).split())[:300]
