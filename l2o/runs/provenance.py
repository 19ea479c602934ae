"""Provenance: what a run was computed with, recorded at its beginning, compared when it resumes."""

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from l2o.runs.folder import RunFolder, atomic_write

PACKAGES = ("l2o", "jax", "jaxlib", "optax")
"""Packages whose versions are recorded."""


def provenance(modules: Sequence[str] = ()) -> dict[str, Any]:
    """Describe what results are computed with, JSON-able.

    >>> sorted(provenance())
    ['device', 'jax', 'jaxlib', 'l2o', 'modules', 'optax', 'python', 'revision']

    Args:
        modules: Names of the user's own modules, such as `my_tasks`.

    Returns:
        Versions of packages and of Python, the kind of device, the git revision of l2o's checkout
        (with `+dirty` if files differ from it; None outside of git), and the sha256 of the file of
        each module (None for one without a file).
    """
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "revision": git_revision(Path(__file__).parents[2]),
        "modules": {name: _sha256(name) for name in modules},
    }


def record_provenance(
    run: RunFolder, modules: Sequence[str] = (), *, on_warning: Callable[[str], None]
) -> dict[str, Any]:
    """Write a run's `provenance.json` when the run begins, and compare with it later.

    Args:
        run: Folder of the run.
        modules: Names of the user's own modules; see `provenance`.
        on_warning: Function called with one line that names what differs from when the run began.
            Another device is no difference: runs may move.

    Returns:
        The provenance of the present process.
    """
    now = provenance(modules)
    try:
        before = _flat(json.loads(run.provenance.read_bytes()))
    except FileNotFoundError:
        atomic_write(run.provenance, json.dumps(now, indent=2).encode() + b"\n")
        return now
    except (OSError, ValueError, AttributeError) as error:
        on_warning(f"{run.provenance} cannot be read ({' '.join(str(error).split())}).")
        return now
    after = _flat(now)
    changed = [
        f"{name} {_short(before.get(name))} (now {_short(after.get(name))})"
        for name in dict.fromkeys((*before, *after))
        if name != "device" and before.get(name) != after.get(name)
    ]
    if changed:
        on_warning(
            f"the run in {run.path} began with {', '.join(changed)}: "
            "it need not end in the bytes that it would have had."
        )
    return now


def git_revision(checkout: Path) -> str | None:
    """Find the git revision of a checkout, with `+dirty` if its tracked files differ from it."""
    top, _, head = _git(checkout, "rev-parse", "--show-toplevel", "HEAD").partition("\n")
    if not head or Path(top).resolve() != checkout.resolve():
        return None  # no checkout, or installed somewhere inside another project
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sha256(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    try:
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except OSError:
        return None


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k != "modules"} | dict(found.get("modules", {}))


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    is_hash = len(value) >= 40
    return value[:12] + ("+dirty" if value.endswith("+dirty") else "") if is_hash else value
