"""Several processes on one machine, through the command line: they agree, move, die and say so."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import tyro

from l2o.cli import main as cli
from l2o.distributed import processes
from l2o.distributed.launchers import ProcessSpec
from l2o.distributed.rendezvous import FORMAT, rendezvous
from l2o.runs.checkpoint import Checkpoints
from l2o.runs.folder import RunError, RunFolder
from l2o.runs.logging import read_metrics

COMMAND = ("-c", "from l2o.cli.main import run; run()")
BOWL = (
    *("--task", "user_module:bowl", "--horizon", "8", "--window", "2", "--steps", "50"),
    *("--no-evaluate", "--quiet", "--num-pairs", "8"),
)
RUN = ("meta-train", "pes", "--std", "0.1", *BOWL)
SMALL = (*RUN, "--optimizer", "learnable_adam", "--learning-rate", "0.03")
INTERRUPTED = (*SMALL, "--log-every", "1", "--checkpoint-every", "2")
"""The same theta, with time to interrupt it."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a child on CPUs, with a compilation cache that later children share."""
    folder = tmp_path_factory.mktemp("children")
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3])),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = []

    def start(*arguments: object, command: Sequence[str] = COMMAND) -> subprocess.Popen:
        typed = [sys.executable, *command, *map(str, arguments)]
        children.append(subprocess.Popen(typed, env=env, cwd=folder, **pipes))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def flags(process_id: int, port: int) -> tuple[object, ...]:
    where = ("--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", 2)
    return (*where, "--process-id", process_id)


def start_two(start, *arguments: object) -> list[subprocess.Popen]:
    port = free_port()
    return [start(*arguments, *flags(i, port)) for i in range(2)]


def finish(child: subprocess.Popen, status: int = 0) -> str:
    """What it wrote to stderr."""
    _, errors = child.communicate(timeout=240)
    assert child.returncode == status, errors
    return errors


def finish_two(children: list[subprocess.Popen], status: int = 0) -> list[str]:
    return [finish(child, status) for child in children]


def number_of_lines(folder: Path) -> int:
    path = RunFolder(folder).metrics
    return len(read_metrics(path)) if path.exists() else 0


def wait_for_a_line(folder: Path, child: subprocess.Popen, before: int) -> None:
    while number_of_lines(folder) <= before:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.01)


def theta_of(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(RunFolder(folder).theta)


def assert_close(folder: Path, other: Path) -> None:
    ours, theirs = theta_of(folder), theta_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        largest = np.max(np.abs(value))
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=3e-5 * largest, err_msg=name)


@pytest.fixture(scope="module")
def on_one_device(start, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    finish(start(*SMALL, "--devices", 1, "--run-dir", folder))
    return folder


@pytest.mark.slow
def test_eight_devices_agree_with_one(start, on_one_device, tmp_path):
    finish(start(*SMALL, "--devices", 8, "--run-dir", tmp_path / "run"))
    assert_close(tmp_path / "run", on_one_device)


@pytest.mark.slow
def test_a_policy_on_eight_devices_and_in_two_processes_is_that_of_one(start, tmp_path):
    arguments = (
        *("meta-train", "ppo", *BOWL, "--optimizer", "scheduler", "--horizon", "50"),
        *("--window", "25", "--steps", "5", "--learning-rate", "0.003"),
    )
    layouts = {"one": ("--devices", 1), "eight": ("--devices", 8)}
    for name, layout in layouts.items():
        finish(start(*arguments, *layout, "--run-dir", tmp_path / name))
    finish_two(start_two(start, *arguments, "--devices", 8, "--run-dir", tmp_path / "two"))
    ours = theta_of(tmp_path / "one")
    for other in ("eight", "two"):
        for name, value in theta_of(tmp_path / other).items():
            largest = np.max(np.abs(ours[name]))
            np.testing.assert_allclose(value, ours[name], rtol=0, atol=1e-4 * largest + 1e-7)


@pytest.mark.slow
def test_a_run_moves_between_layouts(start, on_one_device, tmp_path):
    run = tmp_path / "run"
    arguments = (*INTERRUPTED, "--run-dir", run)
    child = start(*arguments, "--devices", 8)
    wait_for_a_line(run, child, before=0)
    child.send_signal(signal.SIGTERM)
    finish(child, 130)

    lines = number_of_lines(run)
    child = start(*arguments, "--devices", 1, "--resume")
    wait_for_a_line(run, child, lines)
    child.send_signal(signal.SIGTERM)
    finish(child, 130)

    finish_two(start_two(start, *arguments, "--devices", 8, "--resume"))
    assert [line["step"] for line in read_metrics(RunFolder(run).metrics)] == list(range(1, 51))
    assert_close(run, on_one_device)


@pytest.mark.slow
def test_a_process_dies_and_the_run_goes_on(start, on_one_device, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    arguments = (*INTERRUPTED, "--run-dir", run)
    port = free_port()
    children = [
        start(*INTERRUPTED, "--devices", 8, "--run-dir", folder, *flags(i, port))
        for i, folder in enumerate((run, other))
    ]
    wait_for_a_line(run, children[0], before=4)
    assert_the_other_ends(children, dies=1, run=run)
    assert not RunFolder(run).theta.exists()
    assert not other.exists()  # the run folder of process 0 is that of the run
    for step in Checkpoints(RunFolder(run).checkpoints).steps():
        parts = (RunFolder(run).checkpoints / str(step) / "state").glob("ocdbt.process_*")
        assert {p.name for p in parts} == {"ocdbt.process_0", "ocdbt.process_1"}
    finish(start(*arguments, "--devices", 1, "--resume"))
    assert_close(run, on_one_device)


def assert_the_other_ends(children: list[subprocess.Popen], dies: int, run: Path) -> None:
    """Kills one process; the other ends within a minute, and one line of ours says why."""
    children[dies].kill()
    killed_at = time.monotonic()
    _, errors = children[1 - dies].communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert children[1 - dies].returncode == 2, errors
    # Beside it JAX may log that its service has gone, before or after.
    (line,) = [each for each in errors.splitlines() if each.startswith("error: ")]
    assert line.endswith("Continue all with --resume.")
    assert f"process {dies} ended without a word; the last good checkpoint is at step" in line
    assert step_in(line) in Checkpoints(RunFolder(run).checkpoints).steps()


def step_in(line: str) -> int:
    """Of the checkpoint that an error message says is good."""
    return int(re.search(r"the last good checkpoint is at step (\d+)", line)[1])


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_stops_all(start, tmp_path):
    run = tmp_path / "run"
    children = start_two(start, *INTERRUPTED, "--run-dir", run, "--devices", 2)
    wait_for_a_line(run, children[0], before=4)
    (run / "checkpoints").rename(tmp_path / "kept")
    (run / "checkpoints").write_text("")
    first, second = finish_two(children, 2)
    assert first.startswith("error: checkpoint ") and "could not be written" in first
    assert second.startswith("error: process 0 stopped: checkpoint ")
    assert step_in(second) == Checkpoints(tmp_path / "kept").steps()[-1]


@pytest.mark.slow
def test_process_0_dies(start, on_one_device, tmp_path):
    run = tmp_path / "run"
    arguments = (*INTERRUPTED, "--run-dir", run, "--devices", 2)
    children = start_two(start, *arguments)
    wait_for_a_line(run, children[0], before=4)
    assert_the_other_ends(children, dies=0, run=run)
    finish_two(start_two(start, *arguments, "--resume"))
    assert_close(run, on_one_device)


@pytest.mark.slow
def test_a_silent_process_is_given_up(start, tmp_path):
    run = tmp_path / "run"
    children = start_two(start, *INTERRUPTED, "--run-dir", run, "--devices", 2)
    wait_for_a_line(run, children[0], before=2)
    children[1].send_signal(signal.SIGSTOP)
    _, errors = children[0].communicate(timeout=60)
    assert children[0].returncode != 0 and "another task died" in errors
    children[1].kill()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all(start, tmp_path):
    run = tmp_path / "run"
    children = start_two(start, *INTERRUPTED, "--run-dir", run, "--devices", 2)
    wait_for_a_line(run, children[0], before=2)
    children[1].send_signal(signal.SIGTERM)
    finish_two(children, 130)
    assert not RunFolder(run).theta.exists()


@pytest.mark.slow
@pytest.mark.parametrize("design", ["learnable_adam", "mlp_lopt", "nominal_mlp"])
def test_layouts_agree(start, tmp_path, design):
    arguments = (*RUN, "--optimizer", design)
    finish(start(*arguments, "--devices", 1, "--run-dir", tmp_path / "1"))
    finish(start(*arguments, "--devices", 8, "--run-dir", tmp_path / "8"))
    finish_two(start_two(start, *arguments, "--devices", 8, "--run-dir", tmp_path / "2x4"))
    assert number_of_lines(tmp_path / "2x4") == 5  # of one process, not of two
    assert_close(tmp_path / "8", tmp_path / "1")
    assert_close(tmp_path / "2x4", tmp_path / "1")


@pytest.mark.slow
def test_process_0_evaluates_after_the_others_have_gone(start, tmp_path):
    arguments = [*SMALL, "--eval.seeds", 8, "--run-dir", tmp_path / "run"]
    arguments.remove("--no-evaluate")
    children = start_two(start, *arguments)
    output, errors = children[0].communicate(timeout=240)
    assert children[0].returncode == 0, errors
    finish(children[1])
    assert RunFolder(tmp_path / "run").report_json.exists() and "best baseline" in output


@pytest.mark.slow
def test_a_run_that_is_there_is_one_line_in_every_process(start, on_one_device):
    children = start_two(start, *SMALL, "--run-dir", on_one_device)
    first, second = finish_two(children, 2)
    assert first.startswith("error: `run_dir` must be new or empty") and first.count("\n") == 1
    assert second.startswith("error: process 0 stopped: `run_dir` must be new or empty")


TRANSFER = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from l2o.distributed import processes, transfer
from l2o.distributed.launchers import ProcessSpec
from l2o.tree import to_numpy
from l2o.distributed.mesh import population_mesh

number = int(sys.argv[2])
with processes.connected(ProcessSpec("flags", sys.argv[1], 2, number), agreed={}, num_devices=4):
    tree = {
        "f": jnp.array([-0.0, jnp.nan, 1.5, number]),
        "b": jnp.array([True, False, number == 0, True]),
        "i": jnp.int32(number - 7),
        "k": jax.random.split(jax.random.key(number), 4),
        "e": jnp.zeros((4, 0)),
        "n": jnp.arange(3),
    }
    bits = lambda t: {n: (to_numpy(x).tobytes(), str(x.dtype), x.shape) for n, x in t.items()}
    theirs = transfer.broadcast(tree)
    all_bits = processes.exchange(repr(bits(theirs)))
    assert all_bits[0] == all_bits[1] and (number == 1) == (bits(theirs) != bits(tree))
    mesh = population_mesh(4)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["population"], []))
    layout = dict(f=split, b=split, i=whole, k=split, e=split, n=None)
    placed = transfer.place(theirs, layout)
    assert not placed["k"].is_fully_addressable and placed["k"].dtype == tree["k"].dtype
    assert bits(transfer.gather(placed)) == bits(theirs)
    moved = transfer.place(placed, layout | {"f": whole})
    assert moved["f"].is_fully_replicated and bits(transfer.gather(moved)) == bits(theirs)
    assert processes.any_process(number == 1) and not processes.any_process(False)
    assert processes.on_process_0(lambda: "main") == ("main" if number == 0 else None)
    here = transfer.local(moved | {"i": placed["i"]})
    assert here["f"].is_fully_addressable and bits({"f": here["f"]}) == bits({"f": theirs["f"]})
    assert here["i"].is_fully_addressable and not here["k"].is_fully_addressable
    assert processes.from_process_0(lambda: [number, "x"]) == [0, "x"]
    assert processes.exchange("") == ["", ""] and processes.exchange("ä" * number) == ["", "ä"]
    processes.check_shared(Path.cwd())
    if number == 1:  # a host of its own
        Path.exists = lambda path: False
        processes.SECONDS_TO_SEE_A_FILE = 0.2
    try:
        processes.check_shared(Path.cwd())
    except (ValueError, processes.RunError) as error:
        assert "`run_dir` must be on a file system that all processes share" in str(error)
    else:
        raise AssertionError
    assert number or not list(Path.cwd().glob(".shared-*"))
"""


@pytest.mark.slow
def test_topology_of_two_processes(start):
    children = start_two(start, "topology", "--json", "--devices", 4)
    for number, child in enumerate(children):
        output, errors = child.communicate(timeout=240)
        assert child.returncode == 0, errors
        found = json.loads(output)
        assert (found["processes"], found["process"]) == (2, number)
        assert found["devices_per_process"] == [2, 2] and len(found["hosts"]) == 2


@pytest.mark.slow
def test_trees_arrive_to_the_bit(start):
    address = f"127.0.0.1:{free_port()}"
    finish_two([start(address, i, command=("-c", TRANSFER)) for i in range(2)])


@pytest.mark.parametrize(
    ("gpus", "num_gpus", "own"),
    [
        ([None, None], 1, [[0], [1]]),  # both see all
        (["0,1", "0,1"], 1, [[0], [1]]),
        (["0,1,2,3", "0,1,2,3"], 2, [[0, 1], [2, 3]]),
        (["0", "0"], 1, [None, None]),  # the launcher has bound each to one, under number 0
        (["0,1", "0,1"], 2, [None, None]),
        (["0", "1"], 1, [None, None]),
    ],
)
def test_gpus_of_the_processes_of_a_host(gpus, num_gpus, own):
    members = [ProcessSpec("SLURM job 1", "h:1", 2, i) for i in range(2)]
    met = [{"host": "here", "gpus": [visible, None]} for visible in gpus]
    assert [processes.own_gpus(member, met, num_gpus) for member in members] == own
    elsewhere = [about | {"host": f"host{i}"} for i, about in enumerate(met)]
    assert [processes.own_gpus(member, elsewhere, num_gpus) for member in members] == [None, None]


def test_gpus_that_no_launcher_has_bound_are_not_used_twice():
    met = [{"host": "here", "gpus": ["0", None]}] * 2  # typed alike by hand
    members = [ProcessSpec("flags", "h:1", 2, i) for i in range(2)]
    assert [processes.own_gpus(member, met, 1) for member in members] == [[0], [1]]  # JAX says no 1


def in_process(arguments, process_id: int, port: int, capsys) -> str:
    """The one line of a command line that ends before it uses JAX."""
    quick = ("--connect-timeout", "2", "--run-dir", "not_made")
    assert cli.main([*arguments, *map(str, flags(process_id, port)), *quick]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


def test_nobody_at_the_coordinator(capsys):
    port = free_port()
    error = in_process(SMALL, 1, port, capsys)
    assert f"`coordinator` must be where process 0 listens; got 127.0.0.1:{port}" in error
    assert "not reached within 2 s (Connection refused)" in error


def test_nobody_comes_to_the_coordinator(capsys):
    port = free_port()
    error = in_process(SMALL, 0, port, capsys)
    assert f"`num_processes` must all meet at 127.0.0.1:{port}; got 1 of 2 within 2 s" in error
    assert "without process 1" in error


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        error = in_process(SMALL, 0, server.getsockname()[1], capsys)
    assert "`coordinator` must name a free port" in error and "Address already in use" in error


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (
            "--std 0.2",
            "`method.std` must be the same in every process; got 0.2 in process 0 and 0.1",
        ),
        ("--devices 4", "`devices` must be the same in every process; got 4 in process 0 and 2"),
        ("--horizon 4 8", "`horizon` must be the same in every process; got 4 8 in process 0"),
    ],
)
def test_settings_that_differ(typed, says, capsys, monkeypatch):
    parse, lock = tyro.cli, threading.Lock()

    def one_at_a_time(*arguments, **options):  # tyro is not made for threads
        with lock:
            return parse(*arguments, **options)

    monkeypatch.setattr(tyro, "cli", one_at_a_time)
    port = free_port()
    ours = [*SMALL, "--devices", "2", "--run-dir", "not_made", "--connect-timeout", "20"]
    theirs = [*ours, *map(str, flags(1, port))]
    other = threading.Thread(target=cli.main, args=(theirs,))
    other.start()
    assert cli.main([*ours, *typed.split(), *map(str, flags(0, port))]) == 2
    other.join(60)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") and says in line for line in lines)
    assert not Path("not_made").exists()


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([(2, 0), (3, 1)], "got 2 in process 0 and 3 in process 1. Try num_processes=2"),
        ([(3, 0), (3, 1), (3, 1)], "`process_id` must differ between processes; got 1 twice. Try"),
    ],
)
def test_members_that_do_not_fit_are_told(members, says):
    coordinator = f"127.0.0.1:{free_port()}"
    told = []

    def come(num_processes, process_id):
        with pytest.raises(ValueError, match=says) as error:
            rendezvous(
                ProcessSpec("flags", coordinator, num_processes, process_id), {}, timeout=20.0
            )
        told.append(error)

    threads = [threading.Thread(target=come, args=member) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == len(members)


def test_who_waits_less_than_process_0_says_so(monkeypatch):
    monkeypatch.setattr("l2o.distributed.rendezvous.SECONDS_TO_SPEAK", 0.1)
    coordinator = f"127.0.0.1:{free_port()}"
    first = threading.Thread(
        target=pytest.raises,
        args=(ValueError, rendezvous, ProcessSpec("flags", coordinator, 3, 0), {}),
        kwargs={"timeout": 3.0},
    )
    first.start()
    with pytest.raises(ValueError, match="`connect_timeout` must be long enough for all 3 proc"):
        rendezvous(ProcessSpec("flags", coordinator, 3, 1), {}, timeout=0.5)
    first.join()


def meet_all(port: int, first_comes: bytes, *, stays: bool) -> None:
    """Three processes meet, but process 0 and then somebody who says this come first."""
    members = [ProcessSpec("flags", f"127.0.0.1:{port}", 3, i) for i in range(3)]
    met = {}

    def come(member):
        met[member.process_id] = rendezvous(member, {"number": member.process_id}, timeout=20.0)

    threads = [threading.Thread(target=come, args=(member,)) for member in members]
    threads[0].start()
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", port)) as visitor:
        visitor.sendall(first_comes)
        time.sleep(0.3)
        if not stays:
            visitor.close()
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
    for abouts, links in met.values():
        assert abouts == [{"number": 0}, {"number": 1}, {"number": 2}]
        for link in links.values():
            link.close()
    assert sorted(met[0][1]) == [1, 2] and sorted(met[2][1]) == [0]


def test_a_process_started_again_takes_its_place():
    hello = {"format": FORMAT, "num_processes": 3, "process_id": 1, "info": {"number": "gone"}}
    meet_all(free_port(), json.dumps(hello).encode() + b"\n", stays=False)


def test_processes_meet_whatever_else_comes_to_the_port():
    meet_all(free_port(), b"GET / HTTP/1.1\r\n\r\n", stays=True)


def test_the_end_of_a_process_in_the_middle_of_a_checkpoint_is_no_full_disk(monkeypatch):
    """Whoever is told so would remove a good checkpoint, or look for space."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "SECONDS_TO_HEAR_WHY", 0.0)

    def checkpoint(reason):
        try:
            raise jax.errors.JaxRuntimeError(reason)
        except jax.errors.JaxRuntimeError as error:
            raise RunError("checkpoint 10 could not be written. Free space.") from error

    with pytest.raises(RunError, match=r"processes lost each other \(.*task died.*\); go on there"):
        with processes.peer_guard(lambda: "go on there"):
            checkpoint("UNAVAILABLE: another task died")
    with pytest.raises(RunError, match="Free space"):
        with processes.peer_guard(lambda: "go on there"):
            checkpoint("RESOURCE_EXHAUSTED: no space left on device")


@pytest.mark.slow
def test_process_0_validates_while_the_others_wait(start, tmp_path):
    validated = (*SMALL, "--checkpoint-every", 10, "--validate-on", "user_module:two_bowls")
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(*validated, "--devices", 1, "--run-dir", one))
    finish_two(start_two(start, *validated, "--run-dir", two))
    ours, theirs = (read_metrics(RunFolder(folder).validation) for folder in (two, one))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [10, 20, 30, 40, 50]
    scores = [[row["score"] for row in rows] for rows in (ours, theirs)]
    np.testing.assert_allclose(*scores, rtol=1e-3)
    assert RunFolder(two).validated.exists()
