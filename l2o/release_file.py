"""The file of a release: safetensors, whose one metadata entry, `l2o`, is a checked header.

The header is a JSON object: the format, the design's name and keyword arguments, the version of
its features, a summary of its meta-training, and a sha256 over all of these and the weights.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from l2o.runs.folder import atomic_write

FORMAT = 1
FEATURE_CONTRACT = 1
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
HEADER_TYPES = {
    "format": int,
    "design": str,
    "config": dict,
    "feature_contract": int,
    "summary": dict,
    "sha256": str,
}


def write_file(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a header, without its format and checksum, and weights by name, atomically.

    Raises:
        ValueError: If the header is not JSON-able, or the file cannot be written.
    """
    versions = {"format": FORMAT, "feature_contract": FEATURE_CONTRACT}
    try:
        content = json.loads(json.dumps(versions | dict(header), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`summary` and the configuration of {header['design']} must be JSON-able; got "
            f"{error}. Use numbers, strings, lists and dicts."
        ) from error
    content["sha256"] = digest(content, arrays)
    metadata = {"l2o": json.dumps(content, sort_keys=True)}
    try:
        atomic_write(path, safetensors.numpy.save(dict(arrays), metadata))
    except OSError as error:
        raise ValueError(
            f"`path` must be a file that can be written; got {path} ({error.strerror or error}). "
            "Free space or choose another path."
        ) from error


@contextlib.contextmanager
def given_as(argument: str, of: str = "name_or_path") -> Iterator[None]:
    """Let errors of an argument name that by which a caller was given it."""
    try:
        yield
    except ValueError as error:
        error.args = (str(error).replace(f"`{of}`", f"`{argument}`"),)
        raise


def invalid(path: Path, got: str, advice: str = "Get a fresh copy of the file") -> ValueError:
    """The error of a file that is not what it should be."""
    got = " ".join(got.split())[:300]
    return ValueError(f"`name_or_path` must be a release file of l2o; {path}: {got}. {advice}.")


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the header and the weights of a file that is what was written.

    Raises:
        ValueError: If it is not.
    """
    try:
        content = path.read_bytes()
        tensors = safetensors.deserialize(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    except (OSError, safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise invalid(path, f"truncated, damaged or no safetensors file ({error})") from error
    if "l2o" not in metadata:
        raise invalid(path, "it has no l2o header", "Use a file written by l2o.save")
    try:
        header = json.loads(metadata["l2o"], parse_constant=_reject)
    except (ValueError, RecursionError) as error:
        raise invalid(path, f"its l2o header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise invalid(path, "its l2o header is no JSON object")
    for name, kind in HEADER_TYPES.items():
        if type(header.get(name)) is not kind:
            raise invalid(path, f"its l2o header has no {name} of type {kind.__name__}")
    for name, known in (("format", FORMAT), ("feature_contract", FEATURE_CONTRACT)):
        if header[name] != known:
            raise invalid(path, f"its {name} is {header[name]}, not {known}", "Install a newer l2o")
    if len({name for name, _ in tensors}) != len(tensors):
        raise invalid(path, "two of its tensors have the same name")
    if unknown := sorted({t["dtype"] for _, t in tensors} - DTYPES.keys()):
        raise invalid(path, f"it holds {', '.join(unknown)}, not floating-point weights")
    arrays = {
        name: np.frombuffer(t["data"], jnp.dtype(DTYPES[t["dtype"]])).reshape(t["shape"])
        for name, t in tensors
    }
    if digest({k: v for k, v in header.items() if k != "sha256"}, arrays) != header["sha256"]:
        raise invalid(path, "damaged: its content does not match its sha256")
    if problem := not_finite(arrays):
        raise invalid(path, problem, "Use another file")
    return header, arrays


def not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Say which array holds a number that is not finite; None if all are."""
    for name, array in arrays.items():
        if not np.all(np.isfinite(array.astype(np.float64))):
            return f"{name} holds NaN or infinity"
    return None


def shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of each array, in words."""
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of a header without its own, and of weights by name."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, shape in sorted(shapes(arrays).items()):
        found.update(f"\n{name} {shape}\n".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()


def _reject(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
