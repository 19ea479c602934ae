"""The command line in other people's shells: terminals that know ASCII, closed pipes, tildes."""

import gc
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from l2o.cli import main as cli

L2O = [sys.executable, "-c", "from l2o.cli.main import run; run()"]


def test_the_version_is_the_one_that_is_installed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"l2o {version('l2o')}, JAX {version('jax')}\n"


@pytest.mark.parametrize("columns", ["80", "20"])
def test_a_terminal_that_knows_ascii_alone(columns):
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "COLUMNS": columns}
    done = subprocess.run(
        [*L2O, "list"], env=os.environ | ascii_only, capture_output=True, check=False
    )
    assert done.returncode == 0 and not done.stderr
    assert b"digits_mlp" in done.stdout and done.stdout.isascii()


@pytest.mark.parametrize("command", [["list"], ["list", "--json"]])
def test_a_reader_that_has_seen_enough_is_no_mistake(command):
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*L2O, *command], env=unbuffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    process.stdout.close()  # before it has written anything, for which it takes a second
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_output_that_was_closed_from_the_start_is_no_traceback():
    words = ["sh", "-c", '"$0" -c "from l2o.cli.main import run; run()" list >&-', sys.executable]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr


def test_a_broken_pipe_that_is_not_the_output_is_an_error(monkeypatch, capsys):
    def command(arguments, console):
        raise BrokenPipeError(32, "a worker has gone")

    monkeypatch.setattr("l2o.cli.names.command", command)
    monkeypatch.setattr(cli, "has_lost_its_reader", lambda stream: False)
    assert cli.main(["list"]) == 2
    assert "a worker has gone" in capsys.readouterr().err


def test_a_tilde_without_a_home_folder_is_one_line(monkeypatch, capsys):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    assert cli.main(["report", "~/x"]) == 2
    assert "error: `HOME` must be set for a tilde; got ~/x" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["~/nothing", "--run=~/nothing"])
def test_a_tilde_that_the_shell_leaves_is_the_home_folder(word, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = str(tmp_path / "nothing")
    assert cli.with_home(word) == word.replace("~/nothing", expected)


@pytest.mark.parametrize("word", ["a~/b", "~~", "~", "--run", "--run=a/~/b", ""])
def test_other_tildes_stay(word, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.with_home(word) == (str(tmp_path) if word == "~" else word)


def test_words_of_a_command_line_have_their_tildes_replaced(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["report", "~/nothing"]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "line", "what"),
    [
        ("x = 1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("def task():\n    return undefined", 2, "NameError: name 'undefined' is not defined"),
        ("def task():\n    raise ValueError('no\\nlines')", 2, "ValueError: no"),
        (
            "import jax.numpy as jnp, l2o\n"
            "def task():\n"
            "    loss = lambda params, batch, instance: params @ jnp.ones(3)\n"
            "    start = lambda key, instance: jnp.ones(2)\n"
            "    batch = lambda key, instance, data, split: ()\n"
            "    return l2o.Task('mine', lambda key: (), start, batch, loss, loss_cap=9.0)",
            3,
            "TypeError: dot_general requires contracting dimensions",
        ),
    ],
    ids=["import", "call", "value", "trace"],
)
def test_an_error_in_a_users_module_is_told_with_its_line(
    body, line, what, tmp_path, monkeypatch, capsys
):
    module = f"broken_{line}_{len(body)}"
    (tmp_path / f"{module}.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert (
        cli.main(["meta-train", "--task", f"{module}:task", "--run-dir", str(tmp_path / "r")]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / module}.py, line {line}: {what}"), error
    assert error.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("l2o.cli.names.BASELINES", None)
    with pytest.raises((TypeError, AttributeError)):
        cli.main(["list"])


def test_a_working_directory_that_is_gone_is_one_line(monkeypatch, capsys):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", gone)
    assert cli.main(["list"]) == 2
    assert "the working directory has been removed" in capsys.readouterr().err


def test_ctrl_c_in_the_garbage_collector_is_heard_when_that_is_done():
    """An exception in a callback of the collector is printed and forgotten."""
    heard = []

    def collected(phase, info):
        if not heard:
            heard.append(phase)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, cli.interrupt)
    gc.callbacks.append(collected)
    try:
        with pytest.raises(KeyboardInterrupt):
            gc.collect()
            time.sleep(20)
    finally:
        gc.callbacks.remove(collected)
        signal.signal(signal.SIGINT, before)
    assert heard == ["start"]
