"""Progress of a run on the terminal: a live display, or plain lines."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


def describe(line: Mapping[str, Any]) -> str:
    """Describe a line of metrics in words, with the last validation score if it has one."""
    score = line.get("validation_score")
    return (
        f"meta-loss {line['meta_loss']:.4g}  finite {line['finite']:.0%}  "
        + (f"diverged {line['diverged']:.0%}  " if line.get("diverged") else "")
        + ("" if score is None else f"validation {score:.4g} at {line['validation_step']}  ")
        + f"{line['inner_steps_per_second']:,.0f} inner steps/s"
    )


@contextlib.contextmanager
def progress(
    console: Console, num_steps: int, *, quiet: bool
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Show how far a run is.

    Args:
        console: Console on which to show it.
        num_steps: Number of outer steps of the whole run.
        quiet: Whether to print plain lines (the first, the last and one every few seconds), as
            where the console is no terminal.

    Yields:
        Function to call with each line of metrics.
    """
    if quiet or not console.is_terminal:
        shown_at = -SECONDS_BETWEEN_LINES

        def write(line: Mapping[str, Any]) -> None:
            nonlocal shown_at
            now = time.monotonic()
            if now - shown_at >= SECONDS_BETWEEN_LINES or line["step"] == num_steps:
                shown_at = now
                console.print(f"step {line['step']}/{num_steps}  {describe(line)}", soft_wrap=True)

        yield write
        return

    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        bar = display.add_task("compiling", total=num_steps)
        yield lambda line: display.update(bar, completed=line["step"], description=describe(line))
