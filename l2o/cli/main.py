"""The command line: one function a verb; mistakes become one line and exit status 2."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from l2o import registry
from l2o.cli.settings import PRESETS, MetaTraining
from l2o.datasets.fetch import SOURCES, data_rows, fetch
from l2o.distributed import launchers
from l2o.evaluation.baselines import DEFAULT_BASELINES, check_baselines
from l2o.runs.compilation import use_compilation_cache
from l2o.runs.folder import RunError

USAGE = """usage: l2o VERB ...

  meta-train [PRESET] [options]   meta-train a learned optimizer, compare it, write a report
  evaluate RUN_OR_FILE [options]  compare a released one with tuned baselines
  report RUN [--png]              make report.html again from report.json
  compare-hpo [options]           policies beside engines for hyperparameter optimization
  diagnose [options]              bias, variance and cost of meta-gradient estimators
  list [--json]                   tasks, optimizers, ways to meta-train them, and presets
  topology [--json] [options]     devices and processes that a run would use
  data fetch NAME ... | list      data sets that do not come with the package

`l2o VERB --help` lists a verb's options."""


@dataclass(frozen=True)
class Evaluate:
    """Compares a released learned optimizer with tuned baselines on held-out seeds."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_FILE")]
    """Run folder, release file, or the name of one that comes with the package."""
    task: tuple[str, ...] = ("digits_mlp",)
    """Families, their evaluation tasks, or module:attribute of your own."""
    steps: int = 1000
    """Inner steps of each run."""
    seeds: int = 16
    """Runs of each optimizer on each task."""
    seed: int = 0
    """Of everything random."""
    baselines: tuple[str, ...] = DEFAULT_BASELINES
    """What to compare with, each at its best rate: adam, adam_cosine, sgdm, sgdm_cosine."""
    optimizer: str | None = None
    """module:attribute of the design, if it does not come with the package."""
    out: str = "runs/evaluation"
    """Folder for report.json and report.html; replaced if there is one."""


@dataclass(frozen=True)
class Report:
    """Makes report.html again from a run's report.json."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    png: bool = False
    """Write report.png, too."""


@dataclass(frozen=True)
class Topology:
    """Shows what a run would run on."""

    json: bool = False
    """As JSON, of every process."""
    devices: int | None = None
    """As `l2o meta-train` takes it, and so are the rest."""
    distributed: bool = False
    """Connect with the other processes, which run the same."""
    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    """How many processes."""
    process_id: int | None = None
    """Which one this is."""
    connect_timeout: int = 60
    """Seconds to wait for the others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs: dict[str, Callable[[list[str], Console], int]] = {
        "meta-train": meta_train,
        "evaluate": evaluate,
        "report": report,
        "compare-hpo": compare_hpo,
        "diagnose": diagnose,
        "list": list_names,
        "topology": topology,
        "data": data,
    }
    console = Console()
    sys.path.append(str(Path.cwd()))  # module:attribute of a user's own, when run as a script
    if not arguments or arguments[0] in ("-h", "--help"):
        console.print(USAGE, markup=False, highlight=False)
        return 0 if arguments else 2
    try:
        if arguments[0] not in verbs:
            raise registry.unknown("verb", arguments[0], verbs)
        return verbs[arguments[0]](arguments[1:], console)
    except (ValueError, RunError, OSError) as error:
        print(f"error: {as_flags(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: `main`, with JAX's compilation cache."""
    use_compilation_cache()
    sys.exit(main(argv))


SPELLINGS = {
    **{f.name: f"--{f.name.replace('_', '-')}" for f in fields(MetaTraining)},
    "num_steps": "--steps",
    "num_seeds": "--seeds",
    "seeds": "--seeds",
    "verb": "VERB",
    "preset": "PRESET",
    "strategy": "--estimator",
    "num_runs": "--num-runs",
    "reference": "--reference",
    "out": "--out",
    "baselines": "--baselines",
    **{name: f"--{name}" for name in ("engines", "policies", "released", "runs", "searches")},
    "inner_steps": "--inner-steps",
    "name_or_path": "RUN_OR_FILE",
}
"""How the command line spells the arguments that messages name."""


def as_flags(message: str) -> str:
    """A message about arguments, in the spelling of the command line."""
    names = "|".join(sorted(SPELLINGS, key=len, reverse=True))
    message = re.sub(rf"`({names})`", lambda m: SPELLINGS[m[1]], message)
    return re.sub(rf"\b({names})=(?=[\w.])", lambda m: f"{SPELLINGS[m[1]]} ", message)


def meta_train(arguments: list[str], console: Console) -> int:
    """`l2o meta-train [PRESET] [options]`."""

    preset = "custom"
    default = MetaTraining()
    if arguments and not arguments[0].startswith("-"):
        preset = arguments.pop(0)
        if preset not in PRESETS:
            raise registry.unknown("preset", preset, PRESETS)
        default = PRESETS[preset]
    default = replace(default, run_dir=f"runs/{preset}")
    settings = tyro.cli(
        MetaTraining, prog=f"l2o meta-train [{'|'.join(PRESETS)}]", args=arguments, default=default
    )
    from l2o.cli import meta_train as meta_training

    with _connected(settings, meta_training.recorded(settings)):
        return meta_training.meta_train(settings, console)


def topology(arguments: list[str], console: Console) -> int:
    """`l2o topology [--distributed ...] [--json]`."""
    from l2o.distributed import processes
    from l2o.distributed.mesh import population_mesh
    from l2o.distributed.topology import describe, in_words

    options = tyro.cli(Topology, prog="l2o topology", args=arguments)
    with _connected(options, {}) as names:
        if options.devices is not None:
            population_mesh(options.devices)  # whether there are as many
        found, is_main = describe(names), processes.is_process_0()
    if options.json:
        print(json.dumps(found, indent=2))
    elif is_main:
        for title, words in in_words(found).items():
            console.print(f"{title:10} {words}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _connected(
    options: "MetaTraining | Topology", agreed: Mapping[str, Any]
) -> contextlib.AbstractContextManager[list[str]]:
    """Connects with the other processes if the options say so, and makes this one's devices."""
    from l2o.distributed import processes

    flags = {
        name: getattr(options, name) for name in ("coordinator", "num_processes", "process_id")
    }
    for name, value in flags.items():
        if value is not None and not options.distributed:
            raise ValueError(f"`{name}` goes with --distributed; got {value}. Add --distributed.")
    if options.connect_timeout < 1:
        raise ValueError(
            f"`connect_timeout` must be at least 1 s; got {options.connect_timeout}. Try 60."
        )
    return processes.connected(
        launchers.detect_process(**flags) if options.distributed else None,
        agreed=agreed,
        num_devices=options.devices,
        timeout=options.connect_timeout,
    )


def evaluate(arguments: list[str], console: Console) -> int:
    """`l2o evaluate RUN_OR_FILE --task NAME ...`."""
    from l2o import release
    from l2o.cli import meta_train as meta_training
    from l2o.cli.plan import first_theta
    from l2o.evaluation.report import comparison_table, write_report

    options = tyro.cli(Evaluate, prog="l2o evaluate", args=arguments)
    for name in ("steps", "seeds"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"`{name}` must be at least 1; got {getattr(options, name)}. Try {name}=16."
            )
    design = registry.design(options.optimizer) if options.optimizer else None
    check_baselines(options.baselines)
    lopt, theta = release.load(options.source, design=design)
    summary = release.summary(options.source)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    comparisons = meta_training.compare_on(
        registry.tasks_to_evaluate(options.task),
        lopt,
        theta,
        first_theta(lopt, summary.get("seed", 0)),
        seen=summary.get("trained_on", []),
        num_steps=options.steps,
        num_seeds=options.seeds,
        seed=options.seed,
        baselines=options.baselines,
        console=console,
    )
    paths = write_report(options.out, comparisons, config=asdict(options))
    console.print(comparison_table([c.summary for c in comparisons]))
    console.print(str(paths["report.html"]), soft_wrap=True, markup=False)
    return 0


def report(arguments: list[str], console: Console) -> int:
    """`l2o report RUN [--png]`."""
    from l2o.evaluation.report import comparison_table, read_report, render_report

    options = tyro.cli(Report, prog="l2o report", args=arguments)
    paths = render_report(options.run, png=options.png)
    console.print(comparison_table(read_report(options.run)["comparisons"]))
    for path in paths.values():
        console.print(str(path), soft_wrap=True, markup=False)
    return 0


def compare_hpo(arguments: list[str], console: Console) -> int:
    """`l2o compare-hpo [options]`."""
    from l2o.cli.compare_hpo import CompareHPO, run_comparison
    from l2o.distributed import processes

    options = tyro.cli(CompareHPO, prog="l2o compare-hpo", args=arguments)
    processes.use_cpu_cores(len(processes.cores()))
    return run_comparison(options, console)


def diagnose(arguments: list[str], console: Console) -> int:
    """`l2o diagnose [options]`."""
    from l2o.cli.diagnose import Diagnose, run_diagnosis
    from l2o.distributed import processes

    settings = tyro.cli(Diagnose, prog="l2o diagnose", args=arguments)
    processes.use_cpu_cores(len(processes.cores()))
    return run_diagnosis(settings, console)


def list_names(arguments: list[str], console: Console) -> int:
    """`l2o list [--json]`."""
    if arguments not in ([], ["--json"]):
        raise ValueError(f"`list` takes --json or nothing; got {' '.join(arguments)}. Drop it.")
    sections = {
        "tasks": registry.task_lines(),
        "optimizers": {k: registry.first_line(v) for k, v in registry.DESIGNS.items()},
        "estimators": {k: registry.first_line(v) for k, v in registry.ESTIMATORS.items()},
        "policy_gradients": dict(registry.POLICY_GRADIENTS),
        "strategies": dict(registry.STRATEGIES),
        "presets": {
            k: f"{v.optimizer} on {' '.join(v.task)}, {v.steps} steps" for k, v in PRESETS.items()
        },
    }
    if arguments:
        print(json.dumps(sections, indent=2))
        return 0
    for section, rows in sections.items():
        console.print(section, style="bold")
        for name, line in rows.items():
            console.print(f"  {name:21} {line}", markup=False, highlight=False, soft_wrap=True)
    return 0


def data(arguments: list[str], console: Console) -> int:
    """`l2o data fetch NAME ...` and `l2o data list`."""
    match arguments:
        case ["list"]:
            for row in data_rows():
                where = row.folder if row.is_present else f"not fetched ({row.source})"
                size = f"{row.download_bytes / 1e6:.0f} MB"
                console.print(
                    f"{row.name:16} {size:>6}  {row.licence:8} {where}",
                    markup=False,
                    soft_wrap=True,
                )
        case ["fetch", *names] if names:
            for name in names:
                if name not in SOURCES:
                    raise registry.unknown("data", name, SOURCES)
            for name in names:
                console.print(f"{name}: {fetch(name)}", soft_wrap=True, markup=False)
        case _:
            raise ValueError(
                f"`data` takes `list` or `fetch NAME ...`; got {' '.join(arguments) or 'nothing'}. "
                "Try l2o data list."
            )
    return 0
