"""Files of a compressed model: the arrays, small; masks or bits; and a report.

`compressed.safetensors` holds an array as it is, or, where that is smaller, the values that are not
pruned with a bit for each weight (`NAME.values`, `NAME.mask`), or whole numbers of few bits packed
into bytes with a scale for each channel (`NAME.packed`, `NAME.scale`). Its metadata say which.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from l2o.compression.compress import Compressed, num_parameters
from l2o.compression.layers import leaves_by_name
from l2o.compression.trained_model import Params
from l2o.runs.folder import atomic_write
from l2o.tree import to_numpy

FORMAT = 1


def write_compressed(folder: str | Path, result: Compressed) -> dict[str, Any]:
    """Write a compressed model into a folder; returns the content of its report.

    The files are compressed.safetensors, masks.safetensors or bits.json, and compress.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("masks.safetensors", "bits.json"):  # of another compression into this folder
        (folder / name).unlink(missing_ok=True)
    content = encode(result)
    atomic_write(folder / "compressed.safetensors", content)
    if result.scheme == "bits":
        atomic_write(
            folder / "bits.json", (json.dumps(dict(result.bits), indent=1) + "\n").encode()
        )
    else:
        masks = {name: mask.astype(np.uint8) for name, mask in result.masks.items()}
        atomic_write(folder / "masks.safetensors", safetensors.numpy.save(masks))
    found = report(result, len(content))
    atomic_write(folder / "compress.json", (json.dumps(found, indent=1) + "\n").encode())
    return found


def report(result: Compressed, num_bytes: int) -> dict[str, Any]:
    """Make the JSON-able report of a compressed model whose file has so many bytes."""
    leaves = jax.tree.leaves(result.model.params)
    seconds = None
    if result.seconds is not None:
        before, after = result.seconds
        seconds = {"before": before, "after": after, "speed_up": before / after}
    return {
        "model": result.model.name,
        "scheme": result.scheme,
        "budget": {
            "unit": result.unit,
            "limit": result.limit,
            "cost": result.cost,
            "whole": result.whole,
        },
        "search": {
            "name": result.search,
            "evaluations": result.found.evaluations,
            "score": result.found.score,
        },
        "metric": result.model.metric,
        "parameters": {"before": result.model.size, "after": num_parameters(result)},
        "bytes": {"before": sum(leaf.nbytes for leaf in leaves), "after": num_bytes},
        "layers": dict(result.counts),
        "before": result.before,
        "after": result.after,
        "after_fine_tuning": result.after_fine_tuning,
        "seconds": seconds,
    }


def encode(result: Compressed) -> bytes:
    """Make the content of compressed.safetensors."""
    arrays: dict[str, np.ndarray] = {}
    encodings: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves_by_name(result.params).items():
        array = to_numpy(leaf)
        about: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
        if name in result.bits:
            about |= {"encoding": "bits", "bits": result.bits[name]}
            values, scale = result.integers[name]
            arrays |= {f"{name}.packed": pack(values, result.bits[name]), f"{name}.scale": scale}
        elif result.scheme == "weights" and is_smaller_sparse(array, result.masks.get(name)):
            about["encoding"] = "sparse"
            mask = result.masks[name]
            arrays |= {f"{name}.values": array[mask], f"{name}.mask": np.packbits(mask)}
        else:
            about["encoding"] = "dense"
            arrays[name] = np.ascontiguousarray(array)
        encodings[name] = about
    metadata = {"l2o_compressed": json.dumps({"format": FORMAT, "arrays": encodings})}
    return safetensors.numpy.save(arrays, metadata)


def load_compressed(path: str | Path, like: Params | None = None) -> Params:
    """Read the parameters of a compressed model.

    >>> import l2o, tempfile
    >>> rows = np.eye(8, 4, dtype=np.float32), np.arange(8) % 2
    >>> model = l2o.trained_model(
    ...     "linear",
    ...     {"w": np.arange(8, dtype=np.float32).reshape(4, 2)},
    ...     lambda params, inputs: inputs @ params["w"],
    ...     {"train": rows, "valid": rows, "test": rows},
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_compressed(folder, l2o.compress(model, keep=0.5, search="uniform"))
    ...     l2o.load_compressed(f"{folder}/compressed.safetensors", like=model.params)["w"].tolist()
    [[0.0, 0.0], [0.0, 0.0], [4.0, 5.0], [6.0, 7.0]]

    Args:
        path: File compressed.safetensors, or the folder that holds it.
        like: Parameters of the model before, for their structure; arrays by name if None.

    Returns:
        Parameters for the model's `apply`; smaller arrays where units were removed.

    Raises:
        ValueError: If the file is not one of a compressed model, or not of this model.
    """
    path = Path(path)
    path = path / "compressed.safetensors" if path.is_dir() else path
    try:
        content = path.read_bytes()
        arrays = safetensors.numpy.load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        header = json.loads(metadata["l2o_compressed"])
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"`path` must be a file of a compressed model; got {path} ({error}). Try the "
            "compressed.safetensors that l2o compress writes."
        ) from error
    if header["format"] != FORMAT:
        raise ValueError(
            f"`path` must be of format {FORMAT}; got {header['format']} in {path}. Install a newer "
            "l2o."
        )
    leaves = {name: decode(name, about, arrays) for name, about in header["arrays"].items()}
    if like is None:
        return leaves
    names = leaves_by_name(like)
    if names.keys() != leaves.keys():
        raise ValueError(
            f"`like` must have the arrays of {path}, {', '.join(sorted(leaves)[:3])}, ...; got "
            f"{', '.join(sorted(names)[:3])}. Try the params of the model that was compressed."
        )
    for name, leaf in names.items():
        wanted, found = jnp.shape(leaf), leaves[name].shape
        if len(wanted) != len(found) or any(n > m for n, m in zip(found, wanted, strict=True)):
            raise ValueError(
                f"`like` must be the parameters that were compressed; got {name} of shape "
                f"{wanted}, which is {found} in {path}."
            )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in names])


def decode(name: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> jax.Array:
    """Make an array from its parts in the file."""
    shape, dtype = tuple(about["shape"]), jnp.dtype(about["dtype"])
    size = int(np.prod(shape))
    if about["encoding"] == "bits":
        values = unpack(arrays[f"{name}.packed"], about["bits"], size).reshape(shape)
        return jnp.asarray(values.astype(np.float32) * arrays[f"{name}.scale"], dtype)
    if about["encoding"] == "sparse":
        array = np.zeros(size, dtype)
        array[np.unpackbits(arrays[f"{name}.mask"], count=size).astype(bool)] = arrays[
            f"{name}.values"
        ]
        return jnp.asarray(array.reshape(shape))
    return jnp.asarray(arrays[name])


def is_smaller_sparse(array: np.ndarray, mask: np.ndarray | None) -> bool:
    """Tell whether kept values and a bit for each weight are smaller than the array."""
    if mask is None:
        return False
    return int(mask.sum()) * array.itemsize + mask.size / 8 < array.nbytes


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack whole numbers of so many bits into bytes.

    >>> unpack(pack(np.array([-4, 3, 0, -1, 2]), 3), 3, 5).tolist()
    [-4, 3, 0, -1, 2]
    """
    shifted = (values.ravel().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(shifted[:, None], axis=1)[:, 8 - bits :])


def unpack(packed: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Unpack what `pack` has packed; shape (size,), int16."""
    columns = np.unpackbits(packed, count=bits * size).reshape(size, bits)
    weights = 2 ** np.arange(bits - 1, -1, -1, dtype=np.int16)
    return columns.astype(np.int16) @ weights - np.int16(2 ** (bits - 1))
