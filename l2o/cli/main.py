"""The command line: one file a command; mistakes become one line and exit status 2."""

import gc
import importlib
import io
import os
import re
import select
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import jax
from rich.console import Console

import l2o
from l2o import registry
from l2o.runs.compilation import use_compilation_cache
from l2o.runs.folder import RunError

USAGE = """usage: l2o COMMAND ...

  meta-train [PRESET] [options] [METHOD [options]]
                                  meta-train a learned optimizer, compare it, write a report
  evaluate RUN_OR_FILE [options]  compare a released one with tuned baselines
  suite [options]                 optimizers on many tasks, and what that adds up to
  tune-baselines [options]        search for the baselines' settings, kept for comparisons
  report RUN [--png]              make report.html again from report.json
  search [PRESET] [options]       search over settings of meta-training
  compare RUN ... [options]       runs side by side: settings, curves, cost, evaluations
  schedule RUN [options]          what a policy did to hyperparameters, as a plain schedule
  pareto RUN ... [options]        fronts of several objectives, and their hypervolumes
  compare-hpo [options]           policies beside engines for hyperparameter optimization
  compress MODEL [options]        a trained network, pruned or quantized to a budget
  diagnose [options]              bias, variance and cost of meta-gradient estimators
  list [--json]                   tasks, optimizers, methods of meta-training, and presets
  topology [--json] [options]     devices and processes that a run would use
  data fetch NAME ... | list      data sets that do not come with the package

`l2o COMMAND --help` lists a command's options, `l2o meta-train METHOD --help` a method's,
`l2o --version` says which l2o and JAX this is."""

COMMANDS = {
    "meta-train": "l2o.cli.meta_train",
    "evaluate": "l2o.cli.evaluate",
    "suite": "l2o.cli.suite",
    "tune-baselines": "l2o.cli.tune_baselines",
    "report": "l2o.cli.report",
    "search": "l2o.cli.search",
    "compare": "l2o.cli.compare",
    "schedule": "l2o.cli.schedule",
    "pareto": "l2o.cli.pareto",
    "compare-hpo": "l2o.cli.compare_hpo",
    "compress": "l2o.cli.compress",
    "diagnose": "l2o.cli.diagnose",
    "list": "l2o.cli.names",
    "topology": "l2o.cli.topology",
    "data": "l2o.cli.data",
}
"""Modules with a function `command(arguments, console) -> exit status`."""


INTERRUPTED = 130
"""Exit status of a command that Ctrl-C has ended."""


class PlainConsole(Console):
    """A console that does not end the program where its reader has seen enough."""

    def on_broken_pipe(self) -> None:
        """Raise what happened."""
        raise BrokenPipeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    console = PlainConsole()
    try:
        sys.path.append(os.getcwd())  # module:attribute of a user's own, when run as a script
    except FileNotFoundError:
        print(
            "error: the working directory has been removed. Change into one that is there.",
            file=sys.stderr,
        )
        return 2
    if not arguments or arguments[0] in ("-h", "--help"):
        console.print(USAGE, markup=False, highlight=False)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"l2o {l2o.__version__}, JAX {jax.__version__}")
        return 0
    try:
        arguments = [with_home(word) for word in arguments]
        if arguments[0] not in COMMANDS:
            raise unknown_command(arguments[0])
        module = importlib.import_module(COMMANDS[arguments[0]])
        return module.command(arguments[1:], console)
    except BrokenPipeError as error:
        if has_lost_its_reader(sys.stdout):
            raise  # for `run`
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if where := place_in_users_code(error):
            what = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"error: {where}: {what}", file=sys.stderr)
            return 2
        if not isinstance(error, ValueError | RunError | OSError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: what was finished is kept; type the same again to go on, l2o meta-train "
            "with --resume",
            file=sys.stderr,
        )
        return INTERRUPTED


def place_in_users_code(error: Exception) -> str | None:
    """The file and line of a user's own module at which an error arose.

    None if l2o was at work there, or l2o called what failed.
    """
    tasks = Path(importlib.import_module("l2o.tasks").__file__ or "")
    ours = [Path(l2o.__file__).parent.resolve(), tasks.parent.resolve()]
    others = [Path(folder).resolve() for folder in sysconfig.get_paths().values()]
    script = Path(sys.argv[0]).resolve()  # `python meta_train.py`
    is_in = lambda file, folders: any(file.is_relative_to(folder) for folder in folders)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if is_in(file, ours) or file == script:
            return None
        if file.is_file() and not is_in(file, others):
            return f"{frame.filename}, line {frame.lineno}"
    return None


def unknown_command(word: str) -> ValueError:
    """The error for what is no command; presets and methods are words that follow one."""
    from l2o.cli.methods.table import METHODS
    from l2o.cli.presets import PRESETS

    if word in (*METHODS, *PRESETS):  # tyro's hints name a method without the command, too
        return ValueError(f"`COMMAND` must be a known name; got {word}. Try l2o meta-train {word}.")
    return registry.unknown_name_error("COMMAND", word, COMMANDS)


def with_home(word: str) -> str:
    """Put the home folder in the place of a tilde that a shell leaves: behind `--run-dir=`.

    >>> with_home("--run-dir=~/digits") == f"--run-dir={Path.home() / 'digits'}"
    True
    >>> with_home("a~/b")
    'a~/b'
    """
    found = re.fullmatch(r"([\w.-]+=)?(~(?:/.*)?)", word, re.DOTALL)
    if not found:
        return word
    try:
        return f"{found[1] or ''}{Path(found[2]).expanduser()}"
    except RuntimeError as error:
        raise ValueError(
            f"`HOME` must be set for a tilde; got {word} and no home folder. Type the whole path."
        ) from error


def has_lost_its_reader(stream: TextIO) -> bool:
    """Whether who reads a stream has closed it; true where the system does not tell."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt` at Ctrl-C, a little later where nobody would hear of it.

    In callbacks of the garbage collector, of which JAX has one, and of weak references an exception
    is only printed.
    """
    of_collector = [getattr(callback, "__code__", None) for callback in gc.callbacks]
    while frame is not None:
        code = frame.f_code
        is_callback = code in of_collector or code.co_name == "__del__"
        if is_callback or Path(code.co_filename).name in ("weakref.py", "_weakrefset.py"):
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: `main`, with JAX's compilation cache.

    Letters that the terminal does not know become question marks. A reader that has seen enough,
    such as `head`, is no mistake: the exit status is that of a program which SIGPIPE ended.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    use_compilation_cache()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        status = main(argv)
        if sys.stdout is not None:  # as it is where it was closed from the start
            sys.stdout.flush()
        if status == INTERRUPTED:  # without waiting for a thread in which XLA compiles
            os._exit(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the output, which is flushed at the end
        status = 128 + 13
    sys.exit(status)
