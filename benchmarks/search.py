"""What `l2o search` finds, beside the settings as they are at equal total inner steps.

`python benchmarks/search.py` searches over four settings of a short meta-training on digits, judged
on two tabular families, and gives the same inner steps to the settings as they are, in two ways:
    long   one run of all the inner steps, with schedules as long
    seeds  as many whole runs as that makes, of different seeds; the best by the same validation
    once   one whole run, for scale: what the search's trials are each at most
Each ends in a theta, the best trial's and these train the evaluation tasks from the same starts.
A figure is the geometric mean of the best trial's final loss over another's, start by start, below
1 where the search has paid. Inner steps are those of meta-training: steps of validation, which a
search takes more of, are not counted. Intervals are over starts of one search and one seed, and so
say nothing of the next search; `--repetitions` shows the spread over searches. Typed again, it goes
on where it was.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from measuring import environment, wide_console, write
from rich.console import Console
from rich.table import Table

from l2o import registry, release
from l2o.cli.main import main as l2o_main
from l2o.cli.meta_train import meta_trained, parse_settings
from l2o.cli.settings import MetaTraining
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.statistics import mean_interval
from l2o.evaluation.tables import interval_text
from l2o.evaluation.training import Trainer
from l2o.evaluation.validation import read_rows
from l2o.rng import stream
from l2o.runs.folder import RunFolder
from l2o.search.halving import best_trial
from l2o.search.study import read_trials
from l2o.task import Task
from l2o.tasks.digits import digits
from l2o.tasks.image_mlp import image_mlp

OVER = ("learning_rate", "std=0.005:0.5", "window", "weight_decay=1e-5:1e-1")
"""Settings that are searched over."""

BEST = "search"
"""Name of what the search has found."""


@dataclass(frozen=True)
class Options:
    """Compares what a search finds with the settings as they are."""

    steps: int = 200
    """Outer steps of a whole run."""
    horizon: int = 100
    """Inner steps of a training run."""
    whole_runs: int = 10
    """Budget of the search, in whole runs."""
    seeds: int = 32
    """Starts of each evaluation task."""
    repetitions: int = 1
    """Searches, and rivals, of different seeds."""
    runs: Path = Path("runs/search_benchmark")
    """Where the runs are, or will be."""
    name: str = "search"
    """Name of the file of results."""


TASKS = ("digits_mlp_32", "digits_mlp_32x32")
"""Evaluation tasks, the second of which is larger than what is meta-trained on."""


def small_digits() -> Task:
    """One small network on digits, which compiles in seconds."""
    return image_mlp("digits_mlp_32_varied", digits(), (32,), batch_size=32, varied=True)


def words_of(options: Options, seed: int) -> list[str]:
    """The settings as they are, as words of a command line."""
    line = (
        f"--task search:small_digits --optimizer nominal_mlp --steps {options.steps} "
        f"--horizon {options.horizon} --window {options.horizon // 2} --log-every 5 "
        f"--checkpoint-every {options.steps} --devices 1 --validate-on wine_mlp_16 cancer_mlp_16 "
        f"--seed {seed} nres --num-pairs 8 --std 0.05"
    )
    return line.split()


def search(options: Options, seed: int, cost: int) -> tuple[Path, int]:
    """Search; the run folder of the best trial, and the inner steps of all."""
    out = options.runs / f"search{seed}"
    budget = options.whole_runs * cost
    line = ["search", *words_of(options, seed), "--over", *OVER]
    if status := l2o_main([*line, "--budget", str(budget), "--out", str(out)]):
        raise SystemExit(status)
    trials = read_trials(out)
    best = best_trial(trials)
    assert best is not None
    return out / "trials" / f"{best.number:03}", sum(trial.budget_used for trial in trials)


def run(settings: MetaTraining, folder: Path, inner_steps: int, console: Console) -> Path:
    """Meta-train by settings, or take what is there; the run folder."""
    output = dataclasses.replace(settings.output, run_dir=str(folder), quiet=True)
    settings = dataclasses.replace(settings, output=output, evaluate=False)
    meta_trained(settings, inner_steps, console)
    return folder


def entrants(options: Options, seed: int, console: Console) -> tuple[dict[str, Path], int]:
    """Run folders of what is compared, by name, and the inner steps that the search took."""
    settings = parse_settings(words_of(options, seed))
    cost = options.steps * settings.build().learner.steps
    best, used = search(options, seed, cost)
    folder = options.runs / f"rivals{seed}"
    found = {BEST: best, "long": run(settings, folder / "long", used, console)}
    runs = []
    for i in range(round(used / cost)):
        other = dataclasses.replace(settings, seed=1000 * (seed + 1) + i)
        runs.append(run(other, folder / f"seed{i}", cost, console))
    score = lambda path: read_rows(RunFolder(path).validation)[-1]["score"]
    return found | {"seeds": max(runs, key=score), "once": runs[0]}, used


def validation_scores(options: Options, seed: int) -> dict[str, list[float]]:
    """Scores of whole runs: of the trials that came to the end, and of seeds of the settings."""
    trials = read_trials(options.runs / f"search{seed}")
    folders = sorted((options.runs / f"rivals{seed}").glob("seed*"))
    return {
        "trials": [t.scores[options.steps] for t in trials if options.steps in t.scores],
        "seeds": [read_rows(RunFolder(folder).validation)[-1]["score"] for folder in folders],
    }


def final_losses(options: Options, folders: Sequence[Path], seed: int) -> dict[str, np.ndarray]:
    """Final losses on each evaluation task, shape (entrants, starts)."""
    lopt, _ = release.load(folders[0])
    thetas = [release.load(folder)[1] for folder in folders]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *thetas)
    found = {}
    for task in registry.tasks_to_evaluate(TASKS):
        make = lambda theta: lopt.transform(theta, horizon=options.horizon)
        trainer = Trainer(task, make, horizon=options.horizon, probe_every=options.horizon)
        starts = draw_starts(stream(seed, "evaluation"), task, options.seeds)
        curves = trainer.train(stacked, starts, splits=())
        found[task.name] = np.stack([each.final_loss for each in curves])
    return found


def main() -> None:
    """Search, meta-train, evaluate, and write."""
    options = tyro.cli(Options, description=__doc__)
    console = wide_console()
    rows, scores = [], []
    for seed in range(options.repetitions):
        folders, used = entrants(options, seed, console)
        scores.append(validation_scores(options, seed))
        losses = final_losses(options, list(folders.values()), seed)
        for i, name in enumerate(folders):
            if name == BEST:
                continue
            logs = {task: np.log(found[0] / found[i]) for task, found in losses.items()}
            logs["all tasks"] = np.mean(list(logs.values()), axis=0)
            for task, values in logs.items():
                ratio = np.exp(mean_interval(values)).tolist()
                rows.append({"seed": seed, "rival": name, "task": task, "ratio": ratio})
        rows[-1]["inner_steps"] = used
    table = Table(title="Final loss of the search's best over that of a rival, 95 %")
    for column in ("repetition", "rival", "task", "ratio"):
        table.add_column(column)
    for row in rows:
        table.add_row(str(row["seed"]), row["rival"], row["task"], interval_text(*row["ratio"]))
    console.print(table)
    config = {name: x for name, x in dataclasses.asdict(options).items() if name != "runs"}
    console.print(
        str(
            write(
                options.name, {"options": config, "rows": rows, "scores": scores, **environment()}
            )
        )
    )


if __name__ == "__main__":
    main()
