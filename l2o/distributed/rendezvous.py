"""Where processes meet before they compute together.

`jax.distributed` ends the interpreter where a process cannot be reached or a port is taken. So
processes first meet by plain sockets at the same address: each tells process 0 about itself,
process 0 tells all about all, and every mistake becomes an exception in every process.
"""

import contextlib
import json
import select
import socket
import time
from typing import Any

from l2o.distributed.launchers import Member, split_address
from l2o.runs.folder import RunError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts that are reached from this machine alone."""

FORMAT = "l2o 1"
SECONDS_TO_SPEAK = 5.0
SECONDS_BETWEEN_TRIES = 0.2

About = dict[str, Any]
"""What a process tells about itself: JSON."""


def meet(
    member: Member, about: About, *, timeout: float
) -> tuple[list[About], dict[int, socket.socket]]:
    """What each process tells about itself, and connections to the others, by number.

    Process 0 has one to each, the others have one to process 0.

    Args:
        member: which process this is; with one process there is nobody to wait for.
        about: what to tell.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: in every process that was reached, if `num_processes` differs, two have one
            number, the address is not free or another process does not come in time.
    """
    if member.process_id == 0:
        return _host(member, about, timeout)
    return _visit(member, about, timeout)


def bind_address(coordinator: str) -> str:
    """Where process 0 listens: on all its addresses, unless its own machine is all that is asked.

    In a trusted network: whoever reaches the port can disturb the run.
    """
    host, port = split_address(coordinator)
    return coordinator if host in LOOPBACK else f"[::]:{port}"


def _host(
    member: Member, about: About, timeout: float
) -> tuple[list[About], dict[int, socket.socket]]:
    deadline = time.monotonic() + timeout
    abouts: dict[int, About] = {0: about}
    visitors: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, _listen(member.coordinator) as server:
        try:
            while len(abouts) < member.num_processes:
                server.settimeout(max(deadline - time.monotonic(), 1e-3))
                try:
                    visitor = stack.enter_context(server.accept()[0])
                except TimeoutError:
                    _forget_the_gone(visitors, abouts)
                    raise ValueError(_missing(member, abouts, timeout)) from None
                visitor.settimeout(SECONDS_TO_SPEAK)
                try:
                    message = _received(visitor)
                except TimeoutError:
                    message = None
                if message is None or message.get("format") != FORMAT:
                    visitor.close()  # somebody else, who came to this port by mistake
                    continue
                number = message["process_id"]
                _forget_the_gone(visitors, abouts)
                try:
                    _check_visitor(member, message, abouts)
                except ValueError as error:
                    _send(visitor, {"error": str(error)})
                    raise
                visitors[number], abouts[number] = visitor, message["about"]
        except ValueError as error:
            for visitor in visitors.values():
                _send(visitor, {"error": str(error)})
            raise
        met = [abouts[i] for i in range(member.num_processes)]
        for visitor in visitors.values():
            _send(visitor, {"met": met})
        stack.pop_all()  # they stay open
    return met, visitors


def _visit(
    member: Member, about: About, timeout: float
) -> tuple[list[About], dict[int, socket.socket]]:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_connection(member.coordinator, timeout))
        connection.settimeout(timeout + SECONDS_TO_SPEAK)  # so that process 0 is the first to tell
        _send(
            connection,
            {
                "format": FORMAT,
                "num_processes": member.num_processes,
                "process_id": member.process_id,
                "about": about,
            },
        )
        try:
            answer = _received(connection)
        except TimeoutError:
            raise ValueError(
                f"`connect_timeout` must be long enough for all {member.num_processes} processes "
                f"to start; got {timeout:g} s, and process 0 waits longer. Start all of them, or "
                "try a longer --connect-timeout."
            ) from None
        if answer is None:
            raise RunError(
                f"process 0 at {member.coordinator} ended before all {member.num_processes} "
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


def _check_visitor(member: Member, message: dict[str, Any], abouts: dict[int, About]) -> None:
    """Raises a `ValueError` if a process cannot be one of those that process 0 waits for."""
    number = message["process_id"]
    if message["num_processes"] != member.num_processes:
        raise ValueError(
            f"`num_processes` must be the same in every process; got {member.num_processes} in "
            f"process 0 and {message['num_processes']} in process {number}. "
            f"Try num_processes={member.num_processes} in all."
        )
    if number in abouts:
        free = min(set(range(member.num_processes)) - abouts.keys())
        raise ValueError(
            f"`process_id` must differ between processes; got {number} twice. "
            f"Try process_id={free} in one of them."
        )


def _missing(member: Member, abouts: dict[int, About], timeout: float) -> str:
    missing = sorted(set(range(member.num_processes)) - abouts.keys())
    return (
        f"`num_processes` must all meet at {member.coordinator}; got {len(abouts)} of "
        f"{member.num_processes} within {timeout:g} s, without process "
        f"{', '.join(map(str, missing))}. Start all of them, or try a longer --connect-timeout."
    )


def _forget_the_gone(visitors: dict[int, socket.socket], abouts: dict[int, About]) -> None:
    """Removes processes that have closed their connections; they may be started again."""
    gone = select.select(list(visitors.values()), [], [], 0)[0]
    for number in [number for number, visitor in visitors.items() if visitor in gone]:
        visitors.pop(number).close()
        del abouts[number]


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
