"""Several processes, on one host or many: connecting them, and agreeing on what happens.

Every process runs the same program on its part of the population. `connected` is how they start and
end; all of them call the other functions at the same point. With one process none of these does
anything. `docs/scaling.md` lists what `jax.distributed` does not do, for which this code is there.
"""

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from l2o.distributed.launchers import ProcessSpec
from l2o.distributed.mesh import devices_per_process
from l2o.distributed.rendezvous import ProcessInfo, bind_address, rendezvous
from l2o.distributed.watchdog import Watchdog
from l2o.runs.folder import RunError

SECONDS_OF_SILENCE = 30
"""How long a process may stay silent, its connections open, before JAX ends the others."""

SECONDS_TO_HEAR_WHY = 2.0
SECONDS_TO_SEE_A_FILE = 15.0

PEER_ERRORS = "(?!RESOURCE_EXHAUSTED|UNIMPLEMENTED)[A-Z_]+: "
"""Status codes that JAX's errors begin with when another process has gone."""

T = TypeVar("T")

_watchdog: Watchdog | None = None
_where: Callable[[], str] = lambda: "start all again, with --resume if there is a run folder"


@contextlib.contextmanager
def connected(
    process: ProcessSpec | None,
    *,
    agreed: Mapping[str, Any],
    num_devices: int | None = None,
    timeout: float = 60.0,
) -> Iterator[list[str]]:
    """Connect this process with the others, before JAX is used, and disconnect it at the end.

    On CPUs this also makes the devices: `num_devices` over all processes, or one of each core
    that this process need not share. When a process ends with an error, so do the others, at once:
    none waits for what will not come.

    Args:
        process: Number and address of this process; None for one that is alone.
        agreed: Settings that must be the same in every process, by name; JSON.
        num_devices: Number of devices of all processes together.
        timeout: Seconds to wait for the others.

    Yields:
        The host name of each process.

    Raises:
        ValueError: If they do not come together, or something in `agreed` differs; in all of them.
    """
    if process is None:
        use_cpu_cores(num_devices or len(cores()))
        yield [socket.gethostname()]
        return
    names = _connect(process, agreed, num_devices, timeout)
    try:
        yield names
    except BaseException as error:
        if _watchdog is not None:
            _watchdog.part(_one_line(error))
            _leave_at_exit(130 if isinstance(error, KeyboardInterrupt) else 2)
        raise
    disconnect()


def disconnect() -> None:
    """Part from the other processes, in all of them; each can go on computing by itself."""
    global _watchdog
    if _watchdog is not None:
        _watchdog.part()
        _watchdog = None
    jax.distributed.shutdown()


def is_process_0() -> bool:
    """Whether this is process 0, which writes reports and shows the progress."""
    return jax.process_index() == 0


def broadcast_errors(action: Callable[[], T]) -> T:
    """Run `action` in every process, and raise what it raises in one in all of them.

    They are disconnected then.

    >>> broadcast_errors(lambda: 2 + 2)
    4

    Args:
        action: Function to call.

    Returns:
        What it returns in this process.
    """
    if jax.process_count() == 1:
        return action()
    result: list[T] = []
    error: Exception | None = None
    try:
        result.append(action())
    except (ValueError, RunError, OSError) as raised:
        error = raised
    with peer_guard():
        texts = exchange("" if error is None else _one_line(error))
    if any(texts):
        disconnect()
        number = next(i for i, text in enumerate(texts) if text)
        raise error or RunError(f"process {number} stopped: {texts[number]}")
    return result[0]


def on_process_0(action: Callable[[], T]) -> T | None:
    """Run `action` in process 0 alone; what it raises is raised in all.

    Returns:
        What it returns in process 0, None elsewhere.
    """
    return broadcast_errors(lambda: action() if is_process_0() else None)


def from_process_0(action: Callable[[], Any]) -> Any:
    """Run `action` in process 0 alone, and send what it returns, JSON, to all.

    >>> from_process_0(lambda: ["runs/mine", 120])
    ['runs/mine', 120]
    """
    result = on_process_0(action)
    if jax.process_count() == 1:
        return result
    with peer_guard():
        return json.loads(exchange(json.dumps(result))[0])


def check_shared(folder: Path) -> None:
    """Check that a folder of process 0 is on a file system that all processes share.

    Args:
        folder: Path of the folder, the same in every process.

    Raises:
        ValueError: If a process does not see what process 0 writes there; in all of them.
    """
    if jax.process_count() == 1:
        return

    def write() -> str:
        mark = folder / f".shared-{uuid.uuid4().hex}.tmp"
        mark.touch()
        return str(mark)

    def look() -> None:
        deadline = time.monotonic() + SECONDS_TO_SEE_A_FILE
        while not mark.exists():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"`run_dir` must be on a file system that all processes share; got {folder}, "
                    f"where {socket.gethostname()} does not see the files of process 0. "
                    "Choose another --run-dir."
                )
            time.sleep(0.1)

    mark = Path(from_process_0(write))
    try:
        broadcast_errors(look)
    finally:
        if is_process_0():
            mark.unlink(missing_ok=True)


def any_process(flag: bool) -> bool:
    """Whether the flag is True in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def exchange(text: str) -> list[str]:
    """Send a text to all processes.

    Returns:
        The text of every process, in the order of their numbers.
    """
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(content.size)))
    if not sizes.any():
        return [""] * len(sizes)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(sizes), -1))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def peer_guard(where: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn the end of another process into one line that says where to go on.

    Args:
        where: Function that makes the words about that.

    Raises:
        RunError: In place of what JAX raises, if there are other processes.
    """
    global _where
    before = _where
    if where is not None:
        _where = where
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, RunError) as error:  # jaxlib raises either
        cause = (isinstance(error, RunError) and error.__cause__) or error  # a checkpoint's
        if jax.process_count() == 1 or not re.match(PEER_ERRORS, str(cause)):
            raise
        time.sleep(SECONDS_TO_HEAR_WHY)  # in which the watch can say which process has ended
        raise RunError(f"processes lost each other ({_one_line(cause)}); {_where()}") from error
    _where = before  # not after an error, of which another thread may still tell


def use_cpu_cores(num_devices: int) -> None:
    """Make each CPU core a device; without effect once JAX has been used."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(num_devices, 1))


def cores() -> list[int]:
    """List the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def check_agreed(agreed: list[Mapping[str, Any]]) -> None:
    """Raise a `ValueError` that names a field in which a process differs from process 0."""
    for number, theirs in enumerate(agreed):
        for name in (*agreed[0], *theirs):
            first, other = (_shown(fields, name) for fields in (agreed[0], theirs))
            if first != other:
                raise ValueError(
                    f"`{name}` must be the same in every process; got {first} in process 0 "
                    f"and {other} in process {number}. Start all with the same."
                )


def _connect(
    process: ProcessSpec, agreed: Mapping[str, Any], num_devices: int | None, timeout: float
) -> list[str]:
    each = None if num_devices is None else devices_per_process(num_devices, process.num_processes)
    info: ProcessInfo = {
        "host": socket.gethostname(),
        "cores": cores(),
        "gpus": [os.environ.get(n) for n in ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS")],
        "agreed": {**agreed, "devices": num_devices, "version of JAX": jax.__version__},
    }
    info = json.loads(json.dumps(info))  # as the others get it: lists in place of tuples
    met, links = rendezvous(process, info, timeout=timeout)
    try:
        check_agreed([other["agreed"] for other in met])
    except ValueError:
        for link in links.values():
            link.close()
        raise
    global _watchdog
    _watchdog = Watchdog(links, lambda: _where())
    use_cpu_cores(each or min(len(o["cores"]) // len(_sharing(o, met, "cores")) for o in met))
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is for `stop_on_signals`
    jax.distributed.initialize(
        process.coordinator,
        process.num_processes,
        process.process_id,
        local_device_ids=own_gpus(process, met, each or 1),
        cluster_detection_method="deactivate",
        initialization_timeout=max(round(timeout), 1),
        heartbeat_timeout_seconds=SECONDS_OF_SILENCE,
        coordinator_bind_address=bind_address(process.coordinator),
    )
    return [other["host"] for other in met]


def own_gpus(process: ProcessSpec, met: list[ProcessInfo], num_gpus: int) -> list[int] | None:
    """Choose which of the GPUs that it sees a process uses; None for all of them.

    Processes of one host that see the same ones share them out. Where what they see is too little
    for all, the launcher has shared out: each sees its own, under the same numbers.
    """
    info = met[process.process_id]
    sharing, visible = _sharing(info, met, "gpus"), info["gpus"][0]
    is_enough = visible is None or len(visible.split(",")) >= num_gpus * len(sharing)
    if len(sharing) == 1 or (process.launcher != "flags" and not is_enough):
        return None
    first = sharing.index(process.process_id) * num_gpus
    return list(range(first, first + num_gpus))


def _sharing(info: ProcessInfo, met: list[ProcessInfo], name: str) -> list[int]:
    """The processes that share something with one of them: its cores, or its GPUs."""
    key = (info["host"], info[name])
    return [i for i, other in enumerate(met) if (other["host"], other[name]) == key]


def _leave_at_exit(status: int) -> None:
    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)  # runs before JAX's own, which would wait for the others


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _shown(fields: Mapping[str, Any], name: str) -> str:
    """A field as on a command line; lists and tuples, which JSON does not tell apart, alike."""
    value = fields.get(name)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
