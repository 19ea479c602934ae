"""Processes that help a search: whose signals they get, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l2o.search.helpers import PARENT, helpers

CHILD = """
import os, signal, sys, time
from pathlib import Path

log = Path(sys.argv[1])
got = []

def note(number, frame):
    got.append(signal.Signals(number).name)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
log.write_text(os.environ["L2O_SEARCH_PARENT"])
while not got:
    time.sleep(0.01)
time.sleep(0.2)  # for a second one
log.write_text(" ".join(got))
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number, at_ctrl_c",
    [
        (signal.SIGTERM, "default_int_handler"),
        (signal.SIGTERM, "SIG_IGN"),  # as in the background of a script
        (signal.SIGINT, "default_int_handler"),
    ],
)
def test_a_signal_to_the_parent_is_one_signal_to_helpers(tmp_path, number, at_ctrl_c):
    """In a group of its own, which gets Ctrl-C as from a terminal; it is asleep, not in `fit`."""
    log = tmp_path / "log"
    script = f"""
import signal, sys, time
from l2o.search.helpers import helpers

signal.signal(signal.SIGINT, signal.{at_ctrl_c})
try:
    with helpers([sys.executable, "-c", {CHILD!r}, {str(log)!r}], 1):
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    wait_for(log)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.send_signal(number)
    assert parent.wait(timeout=30) == 130
    assert log.read_text() == "SIGTERM"


def test_helpers_know_who_has_started_them(tmp_path):
    log, before = tmp_path / "log", signal.getsignal(signal.SIGTERM)
    with helpers([sys.executable, "-c", CHILD, str(log)], 1) as (process,):
        wait_for(log)
        assert log.read_text() == str(os.getpid()) and PARENT not in os.environ
    assert process.returncode == 0 and signal.getsignal(signal.SIGTERM) is before
