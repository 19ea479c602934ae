"""What a run would run on: devices, processes, hosts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from l2o.distributed import launchers, processes


def describe(host_names: Sequence[str]) -> dict[str, Any]:
    """What JAX and the launcher say, JSON-able, given the host of each process.

    Fields: `platform`; `device_kinds`, how many devices of each kind over all processes;
    `processes`, and `process`, which one this is; `devices_per_process` and `hosts`, by process;
    `cores` that this process may use; `launcher`, what started it as one of several, or null;
    `jax`, its version.
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
    """The lines of a description, by title."""
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
