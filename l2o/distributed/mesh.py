"""Populations over devices.

`jax.shard_map` is what `jax.pmap` has been built on since JAX 0.8, and what JAX asks new code to
use. Only summed quantities cross devices; members derive their keys from their global index, so
the layout changes results by rounding alone.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, PartitionSpec

AXIS = "population"

MembersFn = Callable[..., tuple[Any, Any]]
"""`(indices, states, *replicated) -> (states, sums)`; the first two have a member axis first."""


def population_mesh(num_devices: int) -> Mesh:
    """Make a one-axis mesh over `num_devices` devices, the first ones of each process.

    Raises:
        ValueError: If there are fewer devices, or the processes cannot have equally many.
    """
    present, processes = jax.device_count(), jax.process_count()
    if not 1 <= num_devices <= present:
        raise ValueError(
            f"`devices` must be between 1 and the {present} present; got {num_devices}. "
            f"Try devices={present}."
        )
    per_process = devices_per_process(num_devices, processes)
    by_process = [jax.local_devices(process_index=i) for i in range(processes)]
    devices = [device for here in by_process for device in here[:per_process]]
    return jax.make_mesh((num_devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def devices_per_process(num_devices: int, num_processes: int) -> int:
    """Divide devices evenly between processes.

    Raises:
        ValueError: If the processes cannot have equally many.
    """
    if num_devices < 1 or num_devices % num_processes:
        nearest = max(1, round(num_devices / num_processes)) * num_processes
        raise ValueError(
            f"`devices` must be a multiple of the {num_processes} processes; got {num_devices}. "
            f"Try devices={nearest}."
        )
    return num_devices // num_processes


def check_divides(num_members: int, mesh: Mesh | None, argument: str = "num_members") -> None:
    """Raise a `ValueError` unless a population divides evenly between the devices.

    Args:
        num_members: Size of the population.
        mesh: Devices to spread it over.
        argument: Name of the number of members in the error message.
    """
    if mesh is not None and num_members % mesh.size:
        nearest = max(1, round(num_members / mesh.size)) * mesh.size
        raise ValueError(
            f"`{argument}` must be a multiple of the {mesh.size} devices; got {num_members}. "
            f"Try {argument}={nearest}."
        )


def shard_population(members: MembersFn, mesh: Mesh | None) -> MembersFn:
    """Split the member axis of a function over devices and add its sums up across them.

    Args:
        members: What the members of one device do.
        mesh: Devices, between which the members divide evenly.
    """
    if mesh is None or mesh.size == 1:
        return members
    split, whole = PartitionSpec(AXIS), PartitionSpec()

    def sharded(indices: jax.Array, states: Any, *replicated: Any) -> tuple[Any, Any]:
        def shard(indices, states, *replicated):
            states, sums = members(indices, states, *replicated)
            return states, _sum_over_devices(sums)

        in_specs = (split, split, *[whole] * len(replicated))
        # Unchecked, or `shard_map` would want users to mark what may differ between devices: the
        # constant that a loop of theirs starts from, or theta that they differentiate by.
        unchecked = jax.shard_map(
            shard, mesh=mesh, in_specs=in_specs, out_specs=(split, whole), check_vma=False
        )
        return unchecked(indices, states, *replicated)

    return sharded


def gather_shards(values: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Concatenate what the members of each device have, inside `shard_population`."""
    if mesh is None or mesh.size == 1:
        return values
    return jax.lax.all_gather(values, AXIS, tiled=True)


def shard_index(mesh: Mesh | None) -> jax.Array | int:
    """Tell which device this is, inside `shard_population`: its place in `gather_shards`."""
    return 0 if mesh is None or mesh.size == 1 else jax.lax.axis_index(AXIS)


def _sum_over_devices(tree: Any) -> Any:
    """Sum over devices, in one transfer for each dtype: between processes each is slow."""
    leaves, structure = jax.tree.flatten(tree)
    summed = list(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat, unravel = ravel_pytree([leaves[i] for i in places])
        for i, leaf in zip(places, unravel(jax.lax.psum(flat, AXIS)), strict=True):
            summed[i] = leaf
    return structure.unflatten(summed)
