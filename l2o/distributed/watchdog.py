"""Watchdog: ends a process when another one has ended.

The connections by which the processes met close with the process that holds them, at once and
however it ends. JAX's heartbeats notice after their timeout, and abort without saying which process
it was or where to go on.
"""

import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Mapping

from rich.console import Console

GOODBYE = b"\0"
"""Message of a process that parts in good order; any other is the reason why it ended."""


class Watchdog:
    """Thread that ends this process, with one line and exit status 2, when another one ends.

    If a process closes its connection in good order, so may the others without an error.

    Args:
        links: Connections to other processes, by number.
        where: Function that says where the run can continue, for the line.
    """

    def __init__(self, links: Mapping[int, socket.socket], where: Callable[[], str]) -> None:
        self.links = {link: number for number, link in links.items()}
        self.where = where
        self.is_over = False
        for link in self.links:
            link.settimeout(None)
        threading.Thread(target=self._watch, daemon=True).start()

    def part(self, reason: str = "") -> None:
        """Tell the others that this process ends: in good order, or for a reason."""
        self.is_over = True
        for link in self.links:
            try:
                link.sendall(reason.encode() or GOODBYE)
                link.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has gone first

    def _watch(self) -> None:
        open_links = dict(self.links)
        while open_links and not self.is_over:
            for link in select.select(list(open_links), [], [])[0]:
                number = open_links.pop(link)
                try:
                    said = link.recv(65536)
                except OSError:
                    said = b""
                if said != GOODBYE and not self.is_over:
                    self._leave(number, said.decode(errors="replace"))

    def _leave(self, number: int, reason: str) -> None:
        ended = f"process {number} " + (f"stopped: {reason}" if reason else "ended without a word")
        self.part(ended)
        Console().show_cursor()  # which a progress display may have hidden
        sys.stdout.flush()
        print(f"error: {ended}; {self.where()}", file=sys.stderr, flush=True)
        os._exit(2)
