"""Rendezvous: processes exchange their settings before JAX connects them.

`jax.distributed` aborts the interpreter if another process cannot be reached, and does not compare
anything. So processes first meet by plain sockets at the same address: each tells process 0 about
itself, process 0 tells all about all, and every mistake becomes an exception in every process.
"""

import contextlib
import json
import select
import socket
import time
from typing import Any

from l2o.distributed.launchers import ProcessSpec, split_address
from l2o.runs.folder import RunError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of hosts that are reached from this machine alone."""

FORMAT = "l2o 1"
SECONDS_TO_SPEAK = 5.0
SECONDS_BETWEEN_TRIES = 0.2

ProcessInfo = dict[str, Any]
"""Host, cores, GPUs and settings of a process; JSON."""


def rendezvous(
    process: ProcessSpec, info: ProcessInfo, *, timeout: float
) -> tuple[list[ProcessInfo], dict[int, socket.socket]]:
    """Exchange information with all other processes.

    Args:
        process: Number and address of this process; with one process there is nobody to wait for.
        info: Information to send.
        timeout: Seconds to wait for the others.

    Returns:
        The information of each process, and the connections, by number: of process 0 one to each,
        of the others one to process 0.

    Raises:
        ValueError: In every process that was reached, if `num_processes` differs, two have one
            number, the address is not free or another process does not come in time.
    """
    if process.process_id == 0:
        return _host(process, info, timeout)
    return _visit(process, info, timeout)


def bind_address(coordinator: str) -> str:
    """Choose where process 0 listens: everywhere, unless its own machine is all that is asked for.

    In a trusted network: whoever reaches the port can disturb the run.
    """
    host, port = split_address(coordinator)
    return coordinator if host in LOOPBACK else f"[::]:{port}"


def _host(
    process: ProcessSpec, info: ProcessInfo, timeout: float
) -> tuple[list[ProcessInfo], dict[int, socket.socket]]:
    deadline = time.monotonic() + timeout
    infos: dict[int, ProcessInfo] = {0: info}
    visitors: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, _listen(process.coordinator) as server:
        try:
            while len(infos) < process.num_processes:
                server.settimeout(max(deadline - time.monotonic(), 1e-3))
                try:
                    visitor = stack.enter_context(server.accept()[0])
                except TimeoutError:
                    _forget_the_gone(visitors, infos)
                    raise ValueError(_missing(process, infos, timeout)) from None
                visitor.settimeout(SECONDS_TO_SPEAK)
                try:
                    message = _received(visitor)
                except TimeoutError:
                    message = None
                if message is None or message.get("format") != FORMAT:
                    visitor.close()  # somebody else, who came to this port by mistake
                    continue
                number = message["process_id"]
                _forget_the_gone(visitors, infos)
                try:
                    _check_visitor(process, message, infos)
                except ValueError as error:
                    _send(visitor, {"error": str(error)})
                    raise
                visitors[number], infos[number] = visitor, message["info"]
        except ValueError as error:
            for visitor in visitors.values():
                _send(visitor, {"error": str(error)})
            raise
        met = [infos[i] for i in range(process.num_processes)]
        for visitor in visitors.values():
            _send(visitor, {"met": met})
        stack.pop_all()  # they stay open
    return met, visitors


def _visit(
    process: ProcessSpec, info: ProcessInfo, timeout: float
) -> tuple[list[ProcessInfo], dict[int, socket.socket]]:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_connection(process.coordinator, timeout))
        connection.settimeout(timeout + SECONDS_TO_SPEAK)  # so that process 0 is the first to tell
        _send(
            connection,
            {
                "format": FORMAT,
                "num_processes": process.num_processes,
                "process_id": process.process_id,
                "info": info,
            },
        )
        try:
            answer = _received(connection)
        except TimeoutError:
            raise ValueError(
                f"`connect_timeout` must be long enough for all {process.num_processes} processes "
                f"to start; got {timeout:g} s, and process 0 waits longer. Start all of them, or "
                "try a longer --connect-timeout."
            ) from None
        if answer is None:
            raise RunError(
                f"process 0 at {process.coordinator} ended before all {process.num_processes} "
                "processes had met. See what it says, then start all again."
            )
        if "error" in answer:
            raise ValueError(answer["error"])
        stack.pop_all()  # it stays open
    return answer["met"], {0: connection}


def _connection(coordinator: str, timeout: float) -> socket.socket:
    """A connection to process 0, tried again and again until the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            left = max(deadline - time.monotonic(), 1e-3)
            return socket.create_connection(split_address(coordinator), timeout=left)
        except OSError as error:
            if time.monotonic() + SECONDS_BETWEEN_TRIES < deadline:
                time.sleep(SECONDS_BETWEEN_TRIES)
                continue
            raise ValueError(
                f"`coordinator` must be where process 0 listens; got {coordinator}, not reached "
                f"within {timeout:g} s ({error.strerror or error}). Start process 0, correct "
                "--coordinator, or try a longer --connect-timeout."
            ) from error


def _listen(coordinator: str) -> socket.socket:
    host, port = split_address(coordinator)
    try:
        if host in LOOPBACK:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ValueError(
            f"`coordinator` must name a free port of this machine, which runs process 0; got "
            f"{coordinator} ({error.strerror or error}). Try another port in all processes."
        ) from error


def _check_visitor(
    process: ProcessSpec, message: dict[str, Any], infos: dict[int, ProcessInfo]
) -> None:
    """Raises a `ValueError` if a process cannot be one of those that process 0 waits for."""
    number = message["process_id"]
    if message["num_processes"] != process.num_processes:
        raise ValueError(
            f"`num_processes` must be the same in every process; got {process.num_processes} in "
            f"process 0 and {message['num_processes']} in process {number}. "
            f"Try num_processes={process.num_processes} in all."
        )
    if number in infos:
        free = min(set(range(process.num_processes)) - infos.keys())
        raise ValueError(
            f"`process_id` must differ between processes; got {number} twice. "
            f"Try process_id={free} in one of them."
        )


def _missing(process: ProcessSpec, infos: dict[int, ProcessInfo], timeout: float) -> str:
    missing = sorted(set(range(process.num_processes)) - infos.keys())
    return (
        f"`num_processes` must all meet at {process.coordinator}; got {len(infos)} of "
        f"{process.num_processes} within {timeout:g} s, without process "
        f"{', '.join(map(str, missing))}. Start all of them, or try a longer --connect-timeout."
    )


def _forget_the_gone(visitors: dict[int, socket.socket], infos: dict[int, ProcessInfo]) -> None:
    """Removes processes that have closed their connections; they may be started again."""
    gone = select.select(list(visitors.values()), [], [], 0)[0]
    for number in [number for number, visitor in visitors.items() if visitor in gone]:
        visitors.pop(number).close()
        del infos[number]


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who has gone away need not be told
        connection.sendall(json.dumps(message).encode() + b"\n")


def _received(connection: socket.socket) -> dict[str, Any] | None:
    """A message, or None if what came is none.

    Raises:
        TimeoutError: if nothing came in time.
    """
    try:
        with connection.makefile("rb") as stream:
            message = json.loads(stream.readline())
    except TimeoutError:
        raise
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
