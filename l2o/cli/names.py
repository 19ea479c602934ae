"""`l2o list`: tasks, optimizers, methods of meta-training and presets by name."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from rich.console import Console

from l2o import registry, release
from l2o.cli.methods.estimators import ESTIMATORS
from l2o.cli.methods.policy_gradients import POLICY_GRADIENTS
from l2o.cli.methods.strategies import STRATEGIES
from l2o.cli.presets import PRESETS
from l2o.evaluation.baselines import BASELINES


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o list [--json]`."""
    if {"-h", "--help"} & set(arguments):
        console.print("usage: l2o list [--json]", markup=False, highlight=False)
        return 0
    if arguments not in ([], ["--json"]):
        raise ValueError(f"`list` takes --json or nothing; got {' '.join(arguments)}. Drop it.")
    line = registry.first_line
    sections = {
        "tasks": registry.task_lines(),
        "families": families(),
        "optimizers": {k: line(v) for k, v in registry.DESIGNS.items()},
        "pretrained": {name: pretrained_line(name) for name in release.names()},
        "estimators": {m.name: line(m) for m in ESTIMATORS},
        "combiners": {k: line(v) for k, v in registry.COMBINERS.items()},
        "weightings": {k: line(v) for k, v in registry.WEIGHTINGS.items()},
        "policy_gradients": {m.name: line(m) for m in POLICY_GRADIENTS},
        "strategies": {m.name: line(m) for m in STRATEGIES},
        "baselines": {k: b.description for k, b in BASELINES.items()},
        "presets": {
            k: f"{' '.join(v.optimizer)} on {' '.join(v.task)}, {v.steps} steps of {v.method.name}"
            for k, v in PRESETS.items()
        },
    }
    if arguments:
        print(json.dumps(sections, indent=2))
        return 0
    found = sections.pop("families")
    for section, rows in sections.items():
        console.print(section, style="bold")
        for name, line in rows.items():
            console.print(f"  {name:22} {line}", markup=False, highlight=False, soft_wrap=True)
            if section == "tasks" and name in found:
                about = f"  {'':22} {family_line(found[name])}"
                console.print(about, style="dim", markup=False, highlight=False, soft_wrap=True)
    return 0


def pretrained_line(name: str) -> str:
    """What an optimizer that comes with the package is, and what it was meta-trained on."""
    header, _ = release.read(name)
    about = header["summary"]
    families = [about["task"]] if isinstance(about["task"], str) else about["task"]
    steps = f"{min(about['horizon'])} to {max(about['horizon'])}"
    return f"{header['design']} meta-trained on {', '.join(families)} for {steps} steps."


def families() -> Mapping[str, Mapping[str, Any]]:
    """What `benchmarks/families.py` has measured of each family."""
    return json.loads((resources.files("l2o.tasks") / "families.json").read_text())["families"]


def family_line(family: Mapping[str, Any]) -> str:
    """Data, licence, sizes, what Adam reaches, and speed of a family in one line."""
    low, high = family["parameters"]
    sizes = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    adam, timed = family["tuned_adam"], family["inner_steps_per_second"]
    parts = [
        f"{family['source']} ({family['licence']})" if family["source"] else "drawn at random",
        f"{sizes} parameters",
        f"tuned Adam goes from {adam['first_loss']:.2g} to {adam['final_loss']:.2g} in 200 steps",
    ]
    if timed:
        parts.append(
            f"{timed['adam']:,.0f} inner steps/s under Adam, {timed['pes']:,.0f} under PES, on "
            f"{timed['cores']} core{'s' if timed['cores'] > 1 else ''}"
        )
    return "; ".join(parts)
