"""The population over devices.

`jax.shard_map` is what `jax.pmap` has been built on since JAX 0.8, and what JAX asks new code to
use. Only summed quantities cross devices; members derive their keys from their global index, so
the layout changes results by rounding alone.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

AXIS = "population"

MembersFn = Callable[..., tuple[Any, Any]]
"""`(indices, states, *replicated) -> (states, sums)`; the first two have a member axis first."""


def population_mesh(num_devices: int) -> Mesh:
    """A one-axis mesh over the first `num_devices` devices.

    Raises:
        ValueError: if there are fewer devices.
    """
    present = jax.device_count()
    if not 1 <= num_devices <= present:
        raise ValueError(
            f"`devices` must be between 1 and the {present} present; got {num_devices}. "
            f"Try devices={present}."
        )
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def over_devices(members: MembersFn, num_members: int, mesh: Mesh | None) -> MembersFn:
    """`members`, with the member axis split over the mesh and its sums added up across it.

    Raises:
        ValueError: if the population does not divide by the number of devices.
    """
    if mesh is None or mesh.size == 1:
        return members
    if num_members % mesh.size:
        nearest = max(1, round(num_members / mesh.size)) * mesh.size
        raise ValueError(
            f"`num_pairs` must be a multiple of the {mesh.size} devices; got {num_members}. "
            f"Try num_pairs={nearest}."
        )
    split, whole = PartitionSpec(AXIS), PartitionSpec()

    def sharded(indices: jax.Array, states: Any, *replicated: Any) -> tuple[Any, Any]:
        def shard(indices, states, *replicated):
            states, sums = members(indices, states, *replicated)
            return states, jax.lax.psum(sums, AXIS)

        in_specs = (split, split, *[whole] * len(replicated))
        return jax.shard_map(shard, mesh=mesh, in_specs=in_specs, out_specs=(split, whole))(
            indices, states, *replicated
        )

    return sharded
