"""`l2o topology`: the devices and processes that a run would use."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from l2o.cli.arguments import Flat, parse
from l2o.cli.settings import Processes
from l2o.distributed import processes
from l2o.distributed.mesh import population_mesh
from l2o.distributed.topology import describe, in_words
from l2o.runs.folder import flatten


@dataclass(frozen=True)
class Topology:
    """Shows what a run would run on."""

    json: bool = False
    """Print JSON, in every process."""
    processes: Flat[Processes] = field(default_factory=Processes)


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o topology [--distributed ...] [--json]`."""
    options = parse(Topology, "topology", arguments)
    with connected(options.processes, {}) as names:
        if options.processes.devices is not None:
            population_mesh(options.processes.devices)  # whether there are as many
        found, is_main = describe(names), processes.is_process_0()
    if options.json:
        print(json.dumps(found, indent=2))
    elif is_main:
        for title, words in in_words(found).items():
            console.print(f"{title:10} {words}", markup=False, highlight=False, soft_wrap=True)
    return 0


def connected(
    options: Processes, agreed: Mapping[str, Any]
) -> contextlib.AbstractContextManager[list[str]]:
    """Connect with the other processes if the options say so, and make this one's devices."""
    return processes.connected(
        options.process(),
        agreed=flatten(agreed),
        num_devices=options.devices,
        timeout=options.connect_timeout,
    )
