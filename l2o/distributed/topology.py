"""Topology: the devices, processes and hosts that a run would use."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from l2o.distributed import launchers, processes


def describe(host_names: Sequence[str]) -> dict[str, Any]:
    """Describe the topology, JSON-able.

    Args:
        host_names: Host name of each process.

    Returns:
        `platform`; `device_kinds`, the number of devices of each kind over all processes;
        `processes`, their number, and `process`, that of this one; `devices_per_process` and
        `hosts`, by process; `cores`, the number that this process may use; `launcher`, what started
        it as one of several, or null; `jax`, its version.
    """
    devices = jax.devices()
    of_process = Counter(device.process_index for device in devices)
    return {
        "platform": devices[0].platform,
        "device_kinds": dict(Counter(device.device_kind for device in devices)),
        "processes": jax.process_count(),
        "process": jax.process_index(),
        "devices_per_process": [of_process[i] for i in range(jax.process_count())],
        "hosts": list(host_names),
        "cores": len(processes.cores()),
        "launcher": launchers.launcher(),
        "jax": jax.__version__,
    }


def in_words(found: dict[str, Any]) -> dict[str, str]:
    """Put a description in words, by title."""
    kinds = [f"{count} x {kind}" for kind, count in found["device_kinds"].items()]
    each = sorted(set(found["devices_per_process"]))
    used = found["processes"] > 1
    hint = "" if used or not found["launcher"] else " (--distributed to use it)"
    return {
        "platform": found["platform"],
        "devices": f"{', '.join(kinds)}; {' or '.join(map(str, each))} in each process",
        "processes": str(found["processes"]),
        "hosts": ", ".join(dict.fromkeys(found["hosts"])),
        "cores": f"{found['cores']} for process {found['process']}",
        "launcher": (found["launcher"] or "neither SLURM nor Open MPI") + hint,
        "JAX": found["jax"],
    }
