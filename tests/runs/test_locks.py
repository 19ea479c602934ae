"""Locks that a process leaves when it ends, however it ends."""

import subprocess
import sys

from l2o.runs.locks import locked, try_lock

HOLD = """
import sys, time
from pathlib import Path
from l2o.runs.locks import try_lock
file = try_lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_one_at_a_time(tmp_path):
    path = tmp_path / "lock"
    file = try_lock(path)
    assert file is not None and try_lock(path) is None
    file.close()
    with locked(path):
        assert try_lock(path) is None
    again = try_lock(path)
    assert again is not None
    again.close()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "locked\n"
        assert try_lock(path) is None
        child.kill()
        child.wait()
    file = try_lock(path)
    assert file is not None
    file.close()
