"""Releases: the weights of a learned optimizer, and all that is needed to rebuild it.

A release file names no code: a design is looked up in `l2o.registry.DESIGNS`, or handed to `load`
by the caller. A run folder does: one of your own is imported from the module that its config.json
names. Nothing is unpickled.
"""

import difflib
import importlib.resources
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from l2o import registry, stacks
from l2o.learned_optimizer import Horizon, LearnedOptimizer, Theta
from l2o.registry import DESIGNS, RENAMED, RENAMED_ARGUMENTS
from l2o.release_file import invalid, not_finite, read_file, shapes, write_file
from l2o.runs.folder import RunFolder
from l2o.tree import named_leaves

LARGEST_SIZE = 1024
"""Largest integer argument that need not be the size of an array in the file."""

ARGUMENT_TYPES = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    tuple: (list,),
    list: (list,),
}
"""Types that JSON may hold for an argument, by the type of its default."""

Design = Callable[..., LearnedOptimizer]
"""Constructor of a design."""


def save(
    path: str | Path, lopt: LearnedOptimizer, theta: Theta, summary: Mapping[str, Any] | None = None
) -> None:
    """Write a release file, atomically.

    >>> import jax, l2o, os, tempfile
    >>> lopt, folder = l2o.learnable_sgd(), tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "mine.safetensors")
    >>> l2o.save(path, lopt, lopt.init(jax.random.key(0)), {"trained_on": ["bowl"]})
    >>> l2o.load(path)[0].name
    'learnable_sgd'
    >>> folder.cleanup()

    Args:
        path: Path of the file.
        lopt: Learned optimizer; `lopt.config` must rebuild it.
        theta: Meta-parameters; nested dicts and lists give names such as `layers/0/w`.
        summary: JSON-able facts about the meta-training.

    Raises:
        ValueError: If theta is not finite or not the design's, the configuration or the summary
            is not JSON-able, or the file cannot be written.
    """
    path = Path(path)
    wanted = named_leaves(jax.eval_shape(lopt.init, jax.random.key(0)))
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(theta).items()}
    if problem := _difference(shapes(arrays), shapes(wanted)):
        raise ValueError(
            f"`theta` must be what {lopt.name} takes; got {problem}. "
            "Pass the theta of this design and configuration."
        )
    if problem := not_finite(arrays):
        raise ValueError(
            f"`theta` must be finite; got {problem}. Use an earlier checkpoint of the run."
        )
    header = {"design": lopt.name, "config": dict(lopt.config), "summary": dict(summary or {})}
    write_file(path, header, arrays)


def load(
    name_or_path: str | Path, *, design: Design | None = None
) -> tuple[LearnedOptimizer, Theta]:
    """Load a learned optimizer and its theta from a release file.

    >>> import l2o
    >>> lopt, theta = l2o.load("digits")
    >>> lopt.name
    'nominal_mlp'

    Args:
        name_or_path: Name of an optimizer that comes with l2o, path of a release file, or path of a
            run folder.
        design: Constructor, for a design that does not come with l2o. Without it that of a file in
            a run folder is imported by the `module:attribute` that the run was given.

    Raises:
        ValueError: If there is no such file; if it is damaged, no release file, or of a newer
            format; if it is of an unknown design or another than `design`; or if its configuration
            or weights do not fit the design.
    """
    if design is not None and not callable(design):
        raise ValueError(
            f"`design` must be a constructor; got {design!r}. Try my_module.my_design."
        )
    lopt, theta, _ = _load(name_or_path, design)
    return lopt, theta


def _load(
    name_or_path: str | Path, design: Design | None
) -> tuple[LearnedOptimizer, Theta, Design]:
    """As `load`, and the constructor that the learned optimizer was made by."""
    path = _find(name_or_path)
    header, arrays = read_file(path)
    if design is None and header["design"] not in (*DESIGNS, *RENAMED):
        design = _design_of_run(RunFolder(path.parent))
    lopt, template, constructor = _rebuild(path, header, arrays, design)
    theta = [jnp.asarray(arrays[name]) for name in named_leaves(template)]
    return lopt, jax.tree.structure(template).unflatten(theta), constructor


def optimizer(
    name_or_path: str | Path,
    horizon: Horizon = None,
    *,
    rate_multiplier: float | jax.Array = 1.0,
    weight_decay: float | None = None,
    preference: Mapping[str, float] | None = None,
    stacked: Mapping[str, int] | None = None,
    design: Design | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make an optax transformation from a release file; see `load`.

    >>> import jax.numpy as jnp
    >>> import l2o
    >>> tx = l2o.optimizer("digits", horizon=100)
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, value=1.0)
    >>> updates["w"].shape
    (2, 3)

    Args:
        name_or_path: Name of an optimizer that comes with l2o, path of a release file, or path of a
            run folder.
        horizon: Number of steps of the training run, for designs that follow its progress.
        rate_multiplier: What its updates are multiplied by: the one thing to try when a run is too
            slow, or unstable. A number, or a scalar array, which may be traced. The state is the
            same with all of them.
        weight_decay: Nominal weight decay of its design in place of the one that it was
            meta-trained with, for designs that have one, such as MuonMLP; 0 for none.
        preference: What each reward counts, by name, for a policy that was meta-trained for several
            and is told (`objectives`); one that is not named counts for nothing.
        stacked: Axis of the layers in arrays that hold all layers, by path; see `l2o.stacked`.
        design: Constructor, for a design that does not come with l2o.

    Raises:
        ValueError: As `load`; if `rate_multiplier` is not one positive, finite number, as far as
            that is known where it is traced; or if there is a `weight_decay` or a `preference`,
            and the design has none or does not take it.
    """
    lopt, theta, constructor = _load(name_or_path, design)
    if weight_decay is not None:
        lopt = _with_weight_decay(lopt, constructor, weight_decay)
    if preference is not None:
        lopt = _with_preference(lopt, constructor, preference)
    _check_multiplier(rate_multiplier)
    tx = lopt.transform(theta, horizon=horizon)
    if isinstance(rate_multiplier, jax.Array) or rate_multiplier != 1.0:
        tx = _scaled(tx, rate_multiplier)
    return tx if stacked is None else stacks.stacked(tx, stacked)


def _check_multiplier(multiplier: float | jax.Array) -> None:
    is_scalar = np.ndim(multiplier) == 0
    if isinstance(multiplier, jax.Array):
        types = (jnp.floating, jnp.integer)
        is_scalar = is_scalar and any(jnp.issubdtype(multiplier.dtype, kind) for kind in types)
        if is_scalar and isinstance(multiplier, Tracer):
            return
    value = np.asarray(multiplier).item() if is_scalar else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(
            f"`rate_multiplier` must be one positive, finite number; got {multiplier!r}. "
            "Try rate_multiplier=0.5."
        )


def _scaled(
    tx: optax.GradientTransformationExtraArgs, multiplier: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The same state, and updates times a number, in their type."""

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = tx.update(updates, state, params, **extra)
        return jax.tree.map(lambda u: jnp.asarray(multiplier, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _with_weight_decay(
    lopt: LearnedOptimizer, constructor: Design, weight_decay: float
) -> LearnedOptimizer:
    if "weight_decay" not in lopt.config:
        raise ValueError(
            f"`weight_decay` goes with designs that have one, such as muon_mlp; got {weight_decay} "
            f"for {lopt.name}. Leave it out."
        )
    return constructor(**dict(lopt.config) | {"weight_decay": weight_decay})


def _with_preference(
    lopt: LearnedOptimizer, constructor: Design, preference: Mapping[str, float]
) -> LearnedOptimizer:
    if not isinstance(preference, Mapping):
        raise ValueError(
            f"`preference` must be a dict of what each reward counts; got {preference!r}. "
            'Try preference={"log_loss": 0.7, "examples": 0.3}.'
        )
    objectives = lopt.config.get("objectives")
    if not objectives:
        raise ValueError(
            "`preference` goes with policies that are told what several rewards count; got "
            f"{', '.join(preference) or 'none'} for {lopt.name}, which is not. Leave it out."
        )
    for name in preference:
        if name not in objectives:
            raise ValueError(
                f"`preference` must be among {', '.join(objectives)}, for which this {lopt.name} "
                f'was meta-trained; got {name}. Try preference={{"{objectives[0]}": 1.0}}.'
            )
    weights = [preference.get(name, 0.0) for name in objectives]
    return constructor(**dict(lopt.config) | {"preference": weights})


def read(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the header and the weights of a release file by name, without its design; see `load`.

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    return read_file(_find(name_or_path))


def summary(name_or_path: str | Path) -> dict[str, Any]:
    """Read what a release file says of its meta-training, for instance `trained_on`; see `load`.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """
    header, _ = read_file(_find(name_or_path))
    return header["summary"]


def checksum(name_or_path: str | Path) -> str:
    """Read the sha256 of what a release file holds; see `load`.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """
    header, _ = read_file(_find(name_or_path))
    return header["sha256"]


def names() -> list[str]:
    """List the names of the learned optimizers that come with l2o."""
    return sorted(path.stem for path in _packaged_folder().glob("*.safetensors"))


def _packaged_folder() -> Path:
    return Path(str(importlib.resources.files("l2o.pretrained")))


def _find(name_or_path: str | Path) -> Path:
    text, path = str(name_or_path), Path(name_or_path)
    is_name = isinstance(name_or_path, str) and path.name == text and not path.suffix
    if is_name:
        packaged = _packaged_folder() / f"{text}.safetensors"
        if packaged.is_file():
            return packaged
        if not path.exists():
            nearest = difflib.get_close_matches(text, names()) or names()
            if text in DESIGNS:
                use = "lopt.transform(lopt.init(key), horizon=1000)"
                nearest = [f"lopt = l2o.{text}(), a design, and {use}"]
            raise ValueError(
                f"`name_or_path` must name an optimizer that comes with l2o, or a path; got "
                f"{text!r}. Try {', '.join([*nearest, f'./{text} for a file or run folder'])}."
            )
    if path.is_dir():
        if not RunFolder(path).theta.is_file():
            raise ValueError(
                f"`name_or_path` must be a finished run; got {path}, which holds no "
                f"{RunFolder(path).theta.name}. Continue the run with --resume, or give its "
                f"{RunFolder(path).best.name} if there is one."
            )
        return RunFolder(path).theta
    if not path.is_file():
        raise ValueError(
            f"`name_or_path` must be a release file or a run folder; got {path}, which is "
            "neither. Check the path."
        )
    return path


def _design_of_run(run: RunFolder) -> Design | None:
    """The constructor that a run folder names as module:attribute, or None."""
    try:
        name = str(run.recorded()["optimizer"][0])
    except (ValueError, LookupError, TypeError):  # no run, or none of this version
        return None
    try:
        return registry.design(name) if ":" in name else None
    except ValueError as error:
        raise ValueError(f"`name_or_path` needs design=: that of its run fails, {error}") from error


def _rebuild(
    path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray], design: Design | None
) -> tuple[LearnedOptimizer, Any, Design]:
    """The design of a file, its theta as shapes, and what made it.

    Nothing of the stated sizes is allocated.
    """
    name, config = header["design"], header["config"]
    if design is None:
        name = RENAMED.get(name, name)
        arguments = RENAMED_ARGUMENTS.get(name, {})
        config = {arguments.get(key, key): value for key, value in config.items()}
    if design is None and name not in DESIGNS:
        nearest = ", ".join(difflib.get_close_matches(name, DESIGNS) or DESIGNS)
        raise invalid(
            path,
            f"its design is {name!r}, which does not come with l2o (nearest: {nearest})",
            "For a design of your own pass its constructor, design=my_design; at the command "
            "line, --optimizer my_module:my_design",
        )
    constructor = design or DESIGNS[name]
    if name in DESIGNS and constructor is not DESIGNS[name] and constructor in DESIGNS.values():
        raise ValueError(
            f"`design` must be that of the file, {name}, or one of your own; got "
            f"{constructor.__name__} for {path}. Leave it out."
        )
    dimensions = {size for array in arrays.values() for size in array.shape}
    if problem := config_problem(constructor, config):
        raise invalid(path, f"its configuration does not fit {name}: {problem}")
    for key, value in config.items() if design is None else ():
        if isinstance(value, int) and abs(value) > LARGEST_SIZE and value not in dimensions:
            raise invalid(path, f"its configuration has an absurd size, {key}={value}")
    try:
        lopt = constructor(**config)
        if not isinstance(lopt, LearnedOptimizer):
            raise TypeError(f"it made a {type(lopt).__name__}")
        template = jax.eval_shape(lopt.init, jax.random.key(0))
    except Exception as error:  # the arguments come from the file; anything may go wrong
        raise invalid(path, f"{name} cannot be made from its configuration ({error})") from error
    if lopt.name != name:
        raise invalid(path, f"its design is {name!r}, not {lopt.name!r}", "Pass its own `design`")
    if problem := _difference(shapes(arrays), shapes(named_leaves(template))):
        raise invalid(path, f"its weights do not fit {name}: {problem}")
    return lopt, template, constructor


def config_problem(constructor: Design, config: dict[str, Any]) -> str | None:
    """Why a constructor does not take these keyword arguments, or None if it does."""
    parameters = inspect.signature(constructor).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    for name, value in config.items():
        if name not in parameters:
            return f"it takes no {name} (but {', '.join(parameters) or 'nothing'})"
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str | int | float | bool) for v in values):
            return f"{name} is of type {type(value).__name__}"
        kind = type(parameters[name].default)
        allowed = ARGUMENT_TYPES.get(kind)
        if allowed and type(value) not in allowed:
            return f"{name}={value!r} is not of type {kind.__name__}"
    return None


def _difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            return f"{name} is {found.get(name, 'absent')}, not {wanted.get(name, 'absent')}"
    return None
