"""Progress of a run on the terminal: a live display, or plain lines."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


def describe(line: Mapping[str, Any]) -> str:
    """A line of metrics in words."""
    return (
        f"meta-loss {line['meta_loss']:.4g}  finite {line['finite']:.0%}  "
        f"{line['inner_steps_per_second']:,.0f} inner steps/s"
    )


@contextlib.contextmanager
def progress(
    console: Console, num_steps: int, *, quiet: bool
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that takes each line of metrics and shows how far the run is.

    Args:
        console: where to show it.
        num_steps: outer steps of the whole run.
        quiet: plain lines, as on what is not a terminal: the first, the last and one every
            few seconds.
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
