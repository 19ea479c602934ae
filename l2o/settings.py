"""What a meta-training run is set to, and the presets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from l2o.problem import MetaLoss

Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class MetaTraining:
    """Meta-trains a learned optimizer, compares it with tuned Adam and writes a report."""

    # What is trained, by what, and how theta is found
    task: str = "digits_mlp"
    """Task or family: a name from `l2o list`, or module:attribute of your own."""
    optimizer: str = "nominal_mlp"
    """Design: a name from `l2o list`, or module:attribute of your own."""
    estimator: str = "pes"
    """Meta-gradient estimator: a name from `l2o list`."""

    # The inner training runs
    horizon: tuple[int, ...] = (200,)
    """Inner steps of a run; two numbers draw it log-uniformly between them."""
    window: int = 50
    """Inner steps between two outer steps."""
    meta_loss: MetaLoss = "log"
    """What a step costs: its training loss, or the logarithm of it (plus 0.001)."""

    # The population and the meta-optimizer
    num_pairs: int = 16
    """Antithetic pairs for each task variant."""
    std: float = 0.01
    """Standard deviation of the perturbations of theta."""
    learning_rate: float = 3e-3
    """Peak rate of the meta-optimizer, AdamW with warm-up and cosine decay."""
    weight_decay: float = 1e-4
    """Of the meta-optimizer."""
    clip: float = 1.0
    """Global norm above which the meta-gradient is scaled down."""
    averaging: float = 0.98
    """Decay of the running average of theta that is evaluated and released; 0 for none."""
    steps: int = 1000
    """Outer steps."""
    seed: int = 0
    """Of everything random."""

    # The evaluation
    eval_tasks: tuple[str, ...] = ()
    """Evaluation tasks of the family; none given means all."""
    eval_steps: int | None = None
    """Inner steps of an evaluation run; the longest horizon if not given."""
    eval_seeds: int = 16
    """Evaluation runs of each optimizer on each task."""

    # The run folder and what is shown
    run_dir: str | None = None
    """Where everything is written; runs/PRESET if not given."""
    resume: bool = False
    """Continue the run in the run folder."""
    log_every: int = 10
    """Outer steps of one compiled chunk, and of one line of metrics."""
    checkpoint_every: int = 100
    """Outer steps between checkpoints."""
    devices: int | None = None
    """Devices to spread the population over; as many as divide it if not given. CPU cores count."""
    log: tuple[Tracker, ...] = ()
    """Trackers besides metrics.jsonl."""
    quiet: bool = False
    """Plain lines and no progress display."""


UNRECORDED = frozenset({"run_dir", "resume", "log", "quiet"})
"""Fields that do not change the result, and may change when a run continues."""

_DEFAULT = MetaTraining()

PRESETS: Mapping[str, MetaTraining] = {
    "smoke": replace(
        _DEFAULT,
        task="quadratic",
        optimizer="learnable_adam",
        horizon=(40,),
        window=10,
        num_pairs=4,
        steps=20,
        learning_rate=0.03,
        checkpoint_every=10,
        eval_seeds=4,
    ),
    "demo": replace(
        _DEFAULT,
        horizon=(500,),
        steps=400,
        eval_tasks=("digits_mlp_32x32", "digits_mlp_128x128"),
    ),
    "digits": replace(
        _DEFAULT,
        horizon=(100, 500),
        steps=3000,
        eval_steps=1000,
        eval_seeds=32,
    ),
}
"""Starting points of the command line; every field can be changed by its flag."""
