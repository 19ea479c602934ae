"""`l2o compress`: a user's trained network, made smaller to a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from l2o import registry, release
from l2o.cli.arguments import Flag, Name, Real, check_writable, parse
from l2o.compression.compress import compress
from l2o.compression.files import write_compressed
from l2o.compression.trained_model import TrainedModel
from l2o.release_file import given_as

OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}
"""Optimizers of optax that fine-tune, which take a rate."""


@dataclass(frozen=True)
class Compress:
    """Compresses a trained network to a budget, which is never exceeded."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """module:attribute of your l2o.TrainedModel, or of a function that returns one."""
    keep: Real = None
    """Share of the parameters that may stay, such as .1; or one of the next two."""
    flops: Real = None
    """Share of the multiply-adds that may stay."""
    bits: Real = None
    """Average number of bits of the layers' weights, from 2 to 8."""
    units: Flag = False
    """Remove whole units and channels, so that arrays are really smaller."""
    search: str = "ppo"
    """How the budget is shared out: uniform, global_magnitude, greedy, random_search, tpe, ppo."""
    policy: Name = None
    """File of a meta-trained policy, which shares it out without search."""
    evaluations: int = 200
    """Networks that the search may measure on the validation rows."""
    fine_tune: int = 0
    """Steps of fine-tuning, with masks and bits as they are."""
    optimizer: str = "adam"
    """Optimizer of fine-tuning: adam, adamw, sgd, or a learned one by name or file."""
    rate: Real = None
    """Learning rate of adam, adamw or sgd; 0.001 if not given."""
    batch_size: int = 64
    """Rows of a batch of fine-tuning."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "runs/compress"
    """Folder for compressed.safetensors, masks.safetensors or bits.json, and compress.json."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o compress MODEL --keep .1`."""
    options = parse(Compress, "compress", arguments)
    check_writable(options.out, "out", "runs/compress")
    optimizer = find_optimizer(options)
    if options.policy is not None and not Path(options.policy).is_file():
        raise ValueError(
            f"`policy` must be a file of a meta-trained policy; got {options.policy}, which is "
            "none. Make one by l2o.train_compression_policy."
        )
    result = compress(
        find_model(options.model),
        keep=options.keep,
        flops=options.flops,
        bits=options.bits,
        units=options.units,
        search=options.search,
        policy=options.policy,
        evaluations=options.evaluations,
        fine_tune=options.fine_tune,
        optimizer=optimizer,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    content = write_compressed(options.out, result)
    console.print(layer_table(content))
    console.print(result_table(content))
    console.print(options.out, soft_wrap=True, markup=False)
    return 0


def find_model(path: str) -> TrainedModel:
    """The model at a path, or what the function there returns.

    Raises:
        ValueError: if that is not what is there.
    """
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ValueError(
            f"`MODEL` must be module:attribute; got {path}. Try {module or 'mymodule'}:model."
        )
    found = registry.import_by_path("MODEL", path, ())
    if callable(found) and not isinstance(found, TrainedModel | nnx.Module):
        found = registry.call("MODEL", path, found)
    if not isinstance(found, TrainedModel):
        raise ValueError(
            "`MODEL` must be a TrainedModel or a function that returns one; got "
            f"{path}, which gives {type(found).__name__}. Return l2o.trained_model(...), or "
            "l2o.trained_model_nnx(...) of a Flax module."
        )
    return found


def find_optimizer(options: Compress) -> optax.GradientTransformation:
    """The optimizer that fine-tunes.

    Raises:
        ValueError: if there is none of that name, it takes no rate, or it has nothing to do.
    """
    given: dict[str, float | str | None] = {"rate": options.rate}
    given["optimizer"] = None if options.optimizer == "adam" else options.optimizer
    for name, value in given.items():
        if value is not None and options.fine_tune == 0:
            raise ValueError(f"`{name}` goes with --fine-tune; got {value}. Add --fine-tune 500.")
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise ValueError(f"`rate` must be positive and finite; got {options.rate}. Try rate=0.001.")
    if make := OPTIMIZERS.get(options.optimizer):
        return make(0.001 if options.rate is None else options.rate)
    path = Path(options.optimizer)
    is_name = path.name == options.optimizer and not path.suffix and not path.exists()
    if is_name and options.optimizer not in release.names():
        known = (*OPTIMIZERS, *release.names())
        raise registry.unknown_name_error("optimizer", options.optimizer, known)
    if options.rate is not None:
        raise ValueError(
            f"`rate` must be left out for {options.optimizer}, which is learned; got "
            f"{options.rate}. Drop it."
        )
    with given_as("optimizer"):
        return release.optimizer(options.optimizer, horizon=max(1, options.fine_tune))


def layer_table(content: Mapping[str, Any]) -> Table:
    """What each layer keeps."""
    table = Table("layer", content["scheme"])
    for name, count in content["layers"].items():
        table.add_row(name, f"{count:,}")
    return table


def result_table(content: Mapping[str, Any]) -> Table:
    """The network before, after, and after fine-tuning."""
    table = Table("", "before", "after", "fine-tuned")
    tuned = content["after_fine_tuning"]
    for split in ("valid", "test"):
        for name, before in content["before"][split].items():
            last = "" if tuned is None else f"{tuned[split][name]:.4f}"
            table.add_row(
                f"{name}, {split}", f"{before:.4f}", f"{content['after'][split][name]:.4f}", last
            )
    budget = content["budget"]
    if budget["unit"] != "parameters":
        table.add_row(budget["unit"], f"{budget['whole']:,}", f"{budget['cost']:,}", "")
    for name in ("parameters", "bytes"):
        table.add_row(name, f"{content[name]['before']:,}", f"{content[name]['after']:,}", "")
    if seconds := content["seconds"]:
        ms = [f"{1e3 * seconds[k]:.2f} ms" for k in ("before", "after")]
        table.add_row("time for 256 rows", ms[0], f"{ms[1]}, {seconds['speed_up']:.2f} times", "")
    return table
