"""Several processes, on one host or many: connecting them, and agreeing on what happens.

Every process runs the same program on its part of the population; process 0 alone reads and writes
files. `connected` is how they start and end, the other functions are called by all of them at the
same point. With one process none of them does anything.
"""

import atexit
import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from l2o.distributed.launchers import Member
from l2o.distributed.mesh import devices_per_process
from l2o.distributed.rendezvous import About, bind_address, meet
from l2o.distributed.watchdog import Watch
from l2o.runs.folder import RunError

SECONDS_OF_SILENCE = 30
"""How long a process may stay silent, its connections open, before JAX ends the others."""

SECONDS_TO_HEAR_WHY = 2.0

OF_THE_NETWORK = "(?!RESOURCE_EXHAUSTED|UNIMPLEMENTED)[A-Z_]+: "
"""Status codes that JAX's errors begin with when another process has gone."""

T = TypeVar("T")

_watch: Watch | None = None
_where: Callable[[], str] = lambda: "start all again, with --resume if there is a run folder"


@contextlib.contextmanager
def connected(
    member: Member | None,
    *,
    agreed: Mapping[str, Any],
    num_devices: int | None = None,
    timeout: float = 60.0,
) -> Iterator[list[str]]:
    """Connects this process with the others, before JAX is used, and disconnects it at the end.

    Gives the host of each process.

    On CPUs this also makes the devices: `num_devices` over all processes, or one of each core
    that this process need not share. When a process ends with an error, so do the others, at once:
    none waits for what will not come.

    Args:
        member: which process this is; None for one that is alone.
        agreed: what must be the same in every process, by name; JSON.
        num_devices: of all processes together.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: if they do not come together, or something in `agreed` differs; in all of them.
    """
    if member is None:
        use_cpu_cores(num_devices or len(cores()))
        yield [socket.gethostname()]
        return
    names = _connect(member, agreed, num_devices, timeout)
    try:
        yield names
    except BaseException as error:
        if _watch is not None:
            _watch.part(_one_line(error))
            _leave_at_exit(130 if isinstance(error, KeyboardInterrupt) else 2)
        raise
    disconnect()


def disconnect() -> None:
    """Parts from the other processes, in all of them; each can go on computing by itself."""
    global _watch
    if _watch is not None:
        _watch.part()
        _watch = None
    jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this is process 0, which reads and writes the files and shows the progress."""
    return jax.process_index() == 0


def agree(action: Callable[[], T]) -> T:
    """What `action` returns in this process; what it raises in one is raised in all.

    They are disconnected then.
    """
    if jax.process_count() == 1:
        return action()
    result: list[T] = []
    error: Exception | None = None
    try:
        result.append(action())
    except (ValueError, RunError, OSError) as raised:
        error = raised
    with all_present():
        texts = exchange("" if error is None else _one_line(error))
    if any(texts):
        disconnect()
        number = next(i for i, text in enumerate(texts) if text)
        raise error or RunError(f"process {number} stopped: {texts[number]}")
    return result[0]


def on_main(action: Callable[[], T]) -> T | None:
    """What `action` returns in process 0, None elsewhere; what it raises is raised in all."""
    return agree(lambda: action() if is_main() else None)


def any_process(flag: bool) -> bool:
    """Whether the flag is True in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def exchange(text: str) -> list[str]:
    """The text of every process, in the order of their numbers."""
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(content.size)))
    if not sizes.any():
        return [""] * len(sizes)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(sizes), -1))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def all_present(where: Callable[[], str] | None = None) -> Iterator[None]:
    """While it lasts, another process that ends becomes one line that says where to go on.

    Args:
        where: words about that.

    Raises:
        RunError: in place of what JAX raises, if there are other processes.
    """
    global _where
    before = _where
    if where is not None:
        _where = where
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # jaxlib raises either
        if jax.process_count() == 1 or not re.match(OF_THE_NETWORK, str(error)):
            raise
        time.sleep(SECONDS_TO_HEAR_WHY)  # in which the watch can say which process has ended
        raise RunError(f"processes lost each other ({_one_line(error)}); {_where()}") from error
    _where = before  # not after an error, of which another thread may still tell


def use_cpu_cores(num_devices: int) -> None:
    """Makes each CPU core a device; without effect once JAX has been used."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(num_devices, 1))


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def check_agreed(agreed: list[Mapping[str, Any]]) -> None:
    """Raises a `ValueError` that names a field in which a process differs from process 0."""
    for number, theirs in enumerate(agreed):
        for name in (*agreed[0], *theirs):
            first, other = (_shown(fields, name) for fields in (agreed[0], theirs))
            if first != other:
                raise ValueError(
                    f"`{name}` must be the same in every process; got {first} in process 0 "
                    f"and {other} in process {number}. Start all with the same."
                )


def _connect(
    member: Member, agreed: Mapping[str, Any], num_devices: int | None, timeout: float
) -> list[str]:
    each = None if num_devices is None else devices_per_process(num_devices, member.num_processes)
    about: About = {
        "host": socket.gethostname(),
        "cores": cores(),
        "gpus": [os.environ.get(n) for n in ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS")],
        "agreed": {**agreed, "devices": num_devices, "version of JAX": jax.__version__},
    }
    met, links = meet(member, about, timeout=timeout)
    try:
        check_agreed([other["agreed"] for other in met])
    except ValueError:
        for link in links.values():
            link.close()
        raise
    global _watch
    _watch = Watch(links, lambda: _where())
    use_cpu_cores(each or min(len(o["cores"]) // len(_sharing(o, met, "cores")) for o in met))
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is for `stop_on_signals`
    jax.distributed.initialize(
        member.coordinator,
        member.num_processes,
        member.process_id,
        local_device_ids=own_gpus(member, met, each or 1),
        cluster_detection_method="deactivate",
        initialization_timeout=max(round(timeout), 1),
        heartbeat_timeout_seconds=SECONDS_OF_SILENCE,
        coordinator_bind_address=bind_address(member.coordinator),
    )
    return [other["host"] for other in met]


def own_gpus(member: Member, met: list[About], num_gpus: int) -> list[int] | None:
    """Which of the GPUs that it sees are a process's own; None for all of them.

    Processes of one host that see the same ones share them out. Where what they see is too little
    for all, the launcher has shared out: each sees its own, under the same numbers.
    """
    about = met[member.process_id]
    sharing, visible = _sharing(about, met, "gpus"), about["gpus"][0]
    is_enough = visible is None or len(visible.split(",")) >= num_gpus * len(sharing)
    if len(sharing) == 1 or (member.launcher != "flags" and not is_enough):
        return None
    first = sharing.index(member.process_id) * num_gpus
    return list(range(first, first + num_gpus))


def _sharing(about: About, met: list[About], name: str) -> list[int]:
    """The processes that share something with one of them: its cores, or its GPUs."""
    key = (about["host"], about[name])
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
