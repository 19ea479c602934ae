"""From the words of a command line to a frozen dataclass of options."""

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from l2o.evaluation.baselines import BASELINES, check_baselines

T = TypeVar("T")


def _default(text: str) -> str:
    """What `--help` says of a default; nothing of one that is nothing."""
    return "" if text in ("", "None") else f"(default: {text})"


def _metavar(word: str) -> object:
    return tyro.conf.arg(metavar=word, help_behavior_hint=_default)


Names = Annotated[tuple[str, ...], _metavar("NAMES")]
Numbers = Annotated[tuple[float, ...], _metavar("NUMBERS")]
Steps = Annotated[tuple[int, ...], _metavar("STEPS")]
Name = Annotated[str | None, _metavar("NAME")]
Number = Annotated[int | None, _metavar("INT")]
Real = Annotated[float | None, _metavar("FLOAT")]

Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]

Flat = Annotated[T, tyro.conf.arg(name="")]
"""A group of options whose names have no prefix at the command line."""

RENAMED: Mapping[str, str] = {
    "--estimator": "the method's own name after the options of the run, as in "
    "`l2o meta-train smoke pes --std 0.02`",
    "--objective": "--summary",
    "--reward": "--reward.names",
    "--reward-weights": "--reward.weights",
    "--reward-on": "--reward.on",
    "--reward-batches": "--reward.batches",
    "--penalty": "--reward.penalty",
    "--trace": "--gae-lambda",
    "--averaging": "--ema-decay",
    "--num-runs": "--runs-per-candidate, or --group-size of reinforce",
    "--eval-tasks": "--eval.tasks",
    "--eval-steps": "--eval.horizon",
    "--eval-seeds": "--eval.seeds",
    "--eval-baselines": "--eval.baselines",
}
"""Options of `l2o meta-train` under their old names, and what to type now."""


def check_renamed(arguments: Sequence[str], renamed: Mapping[str, str]) -> None:
    """Raises a `ValueError` that says what to type now for an option that has another name."""
    for word in arguments:
        flag = word.partition("=")[0].replace("_", "-")
        if flag in renamed:
            raise ValueError(f"`{flag}` has another name; got {word}. Type {renamed[flag]}.")


def baselines_named(words: Sequence[str], argument: str = "baselines") -> tuple[str, ...]:
    """The baselines of these names, or all for the word "all".

    Raises:
        ValueError: if there are none, one is unknown or named twice, or "all" is not alone.
    """
    if "all" in words and len(words) > 1:
        raise ValueError(
            f"`{argument}` must be all, or names; got {' '.join(words)}. Try {argument}=all."
        )
    names = tuple(BASELINES) if "all" in words else tuple(words)
    check_baselines(names, argument)
    return names


def check_writable(folder: str, argument: str, example: str) -> None:
    """Raises a `ValueError` that says what to type if a folder cannot be made or written to."""
    if not folder:
        raise ValueError(f"`{argument}` must name a folder; got none. Try {argument}={example}.")
    path = Path(folder).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        problem = "cannot be" if there.is_dir() else "is no folder"
        raise ValueError(
            f"`{argument}` must be a folder that can be written to; got {folder}, but {there} "
            f"{problem}. Try {argument}={example}."
        )


def check_cache(folder: str) -> None:
    """Raises a `ValueError` that says what to type if a folder cannot keep tunings.

    One that is there may hold all that is asked of it, so it need not be writable.
    """
    if not Path(folder).is_dir():
        check_writable(folder, "cache", "runs/tuning")


def parse(options: type[T], command: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Options from the words behind a command; ends the process for --help and for mistakes.

    Options of a run may stand before the method and after it; `--help` shows each by itself.
    """
    config = [tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff]
    if not {"-h", "--help"} & set(arguments):
        config.append(tyro.conf.CascadeSubcommandArgs)
    found = tyro.cli(
        options, prog=f"l2o {command}", args=list(arguments), default=default, config=config
    )
    assert isinstance(found, options)
    return found


def parse_option(constructor: Callable[..., Any], name: str, text: str) -> Any:
    """Parse the value of a constructor's argument from text, as at the command line.

    It is JSON where that is of the type of the argument's default, else the text itself; commas
    separate the items of a list.
    """
    parameter = inspect.signature(constructor).parameters.get(name)
    kind = type(parameter.default) if parameter else str
    if kind in (list, tuple):
        return [_json_or_text(item) for item in text.split(",") if item]
    return text if kind is str else _json_or_text(text.lower() if kind is bool else text)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
