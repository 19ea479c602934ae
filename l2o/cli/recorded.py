"""The settings of a run that is there, from its config.json, so that none need be typed again."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from l2o.cli.methods.table import METHODS
from l2o.cli.settings import MetaTraining
from l2o.runs.folder import EARLIER_STEPS, RunFolder

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def recorded_settings(words: Sequence[str]) -> MetaTraining:
    """The settings of the run that a command line continues; the default ones if it is new.

    Raises:
        ValueError: if the run has settings that are not known here.
    """
    run = RunFolder(Path(run_dir_of(words)))
    if "--resume" not in words or not run.config.is_file():
        return MetaTraining()
    config = run.recorded()
    config.pop(EARLIER_STEPS, None)
    method = dict(config.pop("method", {}))
    name = method.pop("name", None)
    if name not in METHODS:
        raise unknown(run, f"the method {name}")
    settings = replaced(MetaTraining(), config, run)
    return dataclasses.replace(settings, method=replaced(METHODS[name](), method, run))


def run_dir_of(words: Sequence[str]) -> str:
    """The run folder that a command line names, or the one without a preset."""
    found = "runs/custom"
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == "--run-dir":
            found = value if equals else (*words, "")[i + 1]
    return found


def replaced(default: T, config: Mapping[str, Any], run: RunFolder) -> T:
    """A dataclass with the fields of a configuration, whose lists are tuples here."""
    known = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    fields = {}
    for name, value in config.items():
        if name not in known:
            raise unknown(run, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(known[name]):
            fields[name] = replaced(known[name], value, run)
        else:
            fields[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(default, **fields)


def unknown(run: RunFolder, what: str) -> ValueError:
    """The error for a run that another version of l2o has begun."""
    return ValueError(
        f"`resume` needs a run of this version of l2o; got {run.path}, whose config.json has "
        f"{what}. Continue it with the version in its provenance.json."
    )
