"""Checkpoints: what orbax writes, with checksums.

A checkpoint is a folder `<step>/`. Under `state/` lie orbax's files: each process writes the shards
that it holds and reads those that it needs, on whatever devices. Process 0 writes `manifest.json`
last; a folder without one is no checkpoint. It holds what orbax lacks: the sha256 of every file, as
orbax does not notice every flipped bit; the shape and dtype of every array, as orbax casts to what
it is asked for; and which checkpoint had the lowest score so far.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from l2o.runs.folder import PAUSES, RunError, atomic_write, sync_folder
from l2o.tree import is_key, named_leaves, wrap_key_data

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state"


class Checkpoints:
    """The latest checkpoints of a run.

    In several processes, which share the folder, all call `save` and `read`; the rest is for
    process 0.

    >>> import tempfile
    >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()))
    >>> checkpoints.save(10, {"w": jax.numpy.ones(3)}, score=0.5)
    True
    >>> checkpoints.restore({"w": jax.ShapeDtypeStruct((3,), "float32")}, on_warning=print)
    (10, {'w': Array([1., 1., 1.], dtype=float32)})

    Args:
        folder: Folder for the checkpoints; created by the first one.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1; got {keep}. Try keep=2.")
        self.folder = folder.absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(p.name) for p in self._folders() if (p / MANIFEST).exists())

    def save(self, step: int, state: Any, *, score: float | None = None) -> bool:
        """Save a state, then remove checkpoints that need not be kept.

        A failure is tried once more, but for a full disk: over a network it may be a passing one.

        Args:
            step: Number of the outer step; a checkpoint of the same step is replaced.
            state: Pytree of arrays and typed keys.
            score: Score of the checkpoint, the lower the better; None or a number that is not
                finite is never the best.

        Returns:
            Whether the score is the lowest so far; always False in processes other than 0.

        Raises:
            RunError: If it cannot be written; earlier checkpoints stay.
        """
        try:
            return self._save(step, state, score)
        except RunError as error:
            is_full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            if is_full or jax.process_count() > 1:  # of which others wait for the first try
                raise
            time.sleep(PAUSES[-1])
            return self._save(step, state, score)

    def _save(self, step: int, state: Any, score: float | None) -> bool:
        path = self.folder / str(step)
        is_main = jax.process_index() == 0
        arrays = {name: _plain(leaf) for name, leaf in named_leaves(state).items()}
        arrays = {name: array for name, array in arrays.items() if array.size}
        try:
            if is_main:
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove(path)
                _reserve(path, sum(array.nbytes for array in arrays.values()))
            with _orbax() as (checkpointer, args):  # which waits for all processes first
                checkpointer.save(path / STATE, args=args.StandardSave(arrays))
            if not is_main:
                return False
            best = {"step": step, "score": score} if _is_finite(score) else None
            before = self._best_before(step)
            if before and (best is None or before["score"] <= best["score"]):
                best = before
            manifest = {
                "format": FORMAT,
                "best": best,
                "leaves": _signature(state),
                "files": {name: _sha256(path / name, sync=True) for name in _files(path)},
            }
            atomic_write(path / MANIFEST, _sealed(manifest))
            sync_folder(self.folder)
        except Exception as error:  # orbax and tensorstore raise many kinds
            if is_main:
                shutil.rmtree(path, ignore_errors=True)
            raise RunError(
                f"checkpoint {path} could not be written ({_reason(error)}); {self.last_good()}. "
                "Free space, then continue with --resume."
            ) from error
        for old in self.steps()[: -self.keep]:
            _remove(self.folder / str(old))
        return best is not None and best["step"] == step

    def restore(self, target: Any, on_warning: Callable[[str], None]) -> tuple[int, Any] | None:
        """Read the newest intact checkpoint; see `find` and `read`.

        Returns:
            Its step and its state, or None if there is no checkpoint.
        """
        step = self.find(target, on_warning)
        return None if step is None else (step, self.read(step, target))

    def find(self, target: Any, on_warning: Callable[[str], None]) -> int | None:
        """Find the newest intact checkpoint.

        Remains of interrupted saves are removed. A damaged checkpoint is reported and passed
        over; it is removed if there is an intact older one, from which it will be made again.

        Args:
            target: Pytree like the state, with anything that has a shape and dtype at its leaves.
            on_warning: Function called with one line for each damaged checkpoint.

        Returns:
            Its step, or None if there is no checkpoint.

        Raises:
            RunError: If all are damaged, or one holds other arrays than `target`.
        """
        for path in self._folders():
            if not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)
        damaged: list[str] = []
        for step in reversed(self.steps()):
            path = self.folder / str(step)
            try:
                manifest = _verified(path)
            except (ValueError, OSError, KeyError) as error:
                damaged.append(f"checkpoint {path} is damaged ({_reason(error)})")
                continue
            _check_signature(path, manifest["leaves"], _signature(target))
            for message in damaged:
                on_warning(f"{message}: continuing from step {step} instead, to the same result.")
            for later in (s for s in self.steps() if s > step):
                _remove(self.folder / str(later))
            return step
        if damaged:
            raise RunError(
                f"{'; '.join(damaged)}; no intact checkpoint is left. "
                f"Remove {self.folder} to start the run anew with --resume, or use a copy."
            )
        return None

    def read(self, step: int, target: Any) -> Any:
        """Read a checkpoint that `find` has found.

        Args:
            step: Number of the outer step.
            target: Pytree like the state, with `jax.ShapeDtypeStruct`s at its leaves. The arrays
                are placed by their shardings; where there is none, on the first device of each
                process.

        Raises:
            RunError: If it cannot be read.
        """
        path = self.folder / str(step)
        leaves = named_leaves(target)
        plain = {name: _plain_target(leaf) for name, leaf in leaves.items()}
        try:
            with _orbax() as (checkpointer, args):
                wanted = {name: leaf for name, leaf in plain.items() if leaf.size}
                arrays = checkpointer.restore(path / STATE, args=args.StandardRestore(wanted))
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise RunError(
                f"checkpoint {path} could not be read ({_reason(error)}). Remove it to continue "
                "from the one before."
            ) from error
        arrays |= {name: _empty(leaf) for name, leaf in plain.items() if not leaf.size}
        restored = (
            wrap_key_data(arrays[name], leaf) if is_key(leaf) else arrays[name]
            for name, leaf in leaves.items()
        )
        return jax.tree.structure(target).unflatten(restored)

    def is_best(self, step: int) -> bool:
        """Whether a checkpoint had the lowest score so far when it was saved."""
        best = self._manifest(step)["best"]
        return best is not None and best["step"] == step

    def last_good(self) -> str:
        """Words for error messages: which checkpoint a run can continue from."""
        steps = self.steps()
        return f"the last good checkpoint is at step {steps[-1]}" if steps else "none is saved yet"

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if path.name.isdecimal()]

    def _manifest(self, step: int) -> dict[str, Any]:
        return _unsealed((self.folder / str(step) / MANIFEST).read_bytes())

    def _best_before(self, step: int) -> dict[str, Any] | None:
        """Step and score of the best checkpoint, as the newest before `step` recorded them."""
        for older in reversed([s for s in self.steps() if s < step]):
            with contextlib.suppress(OSError, ValueError):
                return self._manifest(older)["best"]
        return None


def _remove(path: Path) -> None:
    """Remove a checkpoint; without its manifest it counts as none, however far this gets."""
    with contextlib.suppress(OSError):
        (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _is_finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


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


def _plain(leaf: Any) -> Any:
    """An array as it is, or the words of typed keys: what orbax takes."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _plain_target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    plain = jax.eval_shape(_plain, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=sharding)


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An array without elements, which orbax refuses."""
    whole = np.empty(leaf.shape, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, whole.__getitem__)


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """Orbax's checkpointer and arguments; what goes wrong in its threads is raised, not logged."""
    import orbax.checkpoint as ocp  # half a second, which those who only apply need not wait

    log = logging.getLogger("absl")
    log.addFilter(_silent)
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            yield checkpointer, ocp.args
    finally:
        log.removeFilter(_silent)


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
