"""What a meta-training run is set to, and the presets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from l2o.estimators.population import Shaping
from l2o.evaluation.baselines import DEFAULT_BASELINES
from l2o.objective import Batches, Summary
from l2o.rl.environment import CreditName
from l2o.rl.gae import ReturnBaseline

Tracker = Literal["tensorboard", "wandb"]
RewardOn = Literal["train", "valid"]


@dataclass(frozen=True)
class MetaTraining:
    """Meta-trains a learned optimizer, compares it with tuned baselines and writes a report."""

    # What is trained, by what, and how theta is found
    task: tuple[str, ...] = ("digits_mlp",)
    """Tasks or families: names from `l2o list`, or module:attribute of your own."""
    weights: tuple[float, ...] = ()
    """Weight of each of the tasks in the meta-gradient; equal if not given."""
    optimizer: str = "nominal_mlp"
    """Design: a name from `l2o list`, or module:attribute of your own."""
    estimator: str = "pes"
    """Meta-gradient estimator, policy gradient or evolution strategy: a name from `l2o list`."""

    # The inner training runs
    horizon: tuple[int, ...] = (200,)
    """Inner steps of a run; two numbers draw it log-uniformly between them."""
    window: int = 50
    """Inner steps between two outer steps."""

    # What a run costs
    objective: Summary = "log"
    """Mean over the run, mean of the logarithm, final, best, or steps until a target is reached."""
    measure: str = "loss"
    """Of what: the loss, or a metric of the tasks, such as accuracy."""
    measure_on: Batches = "step"
    """The step's own batch before its update, or fresh train or valid batches after it."""
    measure_batches: int = 1
    """Fresh batches of each measurement."""
    target: float | None = None
    """Value of the measure that steps_to_target waits for."""
    normalize: bool = False
    """Divide losses by a typical one of their task, which makes tasks comparable."""

    # What a policy is paid, and how it learns; for reinforce and ppo
    reward: tuple[str, ...] = ("log_loss",)
    """log_loss (its decrease), loss (as evolution strategies have it), examples (saved by smaller
    batches), or metrics (their gain)."""
    reward_weights: tuple[float, ...] = ()
    """Weight of each of the rewards; 1 if not given."""
    reward_on: RewardOn = "train"
    """Split of the fresh batches on which rewards are measured."""
    reward_batches: int = 4
    """Fresh batches of each measurement."""
    penalty: float = 1.0
    """What a run pays that diverges."""
    credit: CreditName = "team"
    """Pay all agents alike, or each for the difference it made, which takes more inner steps."""
    discount: float = 1.0
    """Of the reward of each later decision."""
    baseline: ReturnBaseline = "antithetic"
    """What reinforce subtracts from returns; for the first two, groups have --num-runs runs."""
    trace: float = 1.0
    """λ of the generalized advantages of ppo; 1 takes whole returns."""
    epochs: int = 4
    """Passes of ppo over a window."""
    minibatches: int = 4
    """Minibatches of each pass."""
    clip_ratio: float = 0.2
    """How far ppo lets the likelihood of an action move from 1 times what it was."""
    entropy_weight: float = 0.0
    """Reward for randomness of actions."""

    # The population and the meta-optimizer
    num_pairs: int = 16
    """Antithetic pairs for each task variant; half the candidates of an evolution strategy."""
    num_runs: int = 4
    """Runs of each candidate of an evolution strategy on each task variant."""
    std: float = 0.01
    """Standard deviation of the perturbations of theta."""
    final_std: float | None = None
    """What it falls to, geometrically, by the end of the run; constant if not given."""
    shaping: Shaping = "none"
    """What a loss difference counts as; see l2o.estimators.population."""
    freeze: tuple[str, ...] = ()
    """Leaves of theta that stay as they are: names, or patterns such as layers/0/*."""
    learning_rate: float = 3e-3
    """Peak rate of the meta-optimizer, AdamW with warm-up and cosine decay."""
    weight_decay: float = 1e-4
    """Of the meta-optimizer."""
    clip: float = 1.0
    """Global norm above which the meta-gradient is scaled down."""
    ema_decay: float = 0.98
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
    eval_baselines: tuple[str, ...] = DEFAULT_BASELINES
    """What to compare with, each at its best rate: adam, adam_cosine, sgdm, sgdm_cosine."""
    evaluate: bool = True
    """Compare with the baselines and write the report at the end."""

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
    """Devices to spread the population over; as many as divide it if not given. CPU cores count,
    and so do the devices of all processes."""
    profile: bool = False
    """Write a trace of the second chunk to the run folder's `profile`, for ui.perfetto.dev."""
    log: tuple[Tracker, ...] = ()
    """Trackers besides metrics.jsonl."""
    quiet: bool = False
    """Plain lines and no progress display."""

    # Several processes
    distributed: bool = False
    """Be one of several processes of a run; SLURM and Open MPI say which one."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 is reached, if neither of them started it."""
    num_processes: int | None = None
    """How many processes, likewise."""
    process_id: int | None = None
    """Which one this is, from 0, likewise."""
    connect_timeout: int = 60
    """Seconds to wait for the other processes at the start."""


UNRECORDED = frozenset(
    {
        *("run_dir", "resume", "log", "quiet", "evaluate", "devices", "profile"),
        *("distributed", "coordinator", "num_processes", "process_id", "connect_timeout"),
    }
)
"""Fields that change the result by rounding at most, and may change when a run continues."""

_DEFAULT = MetaTraining()

PRESETS: Mapping[str, MetaTraining] = {
    "smoke": replace(
        _DEFAULT,
        task=("quadratic",),
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
    "scheduler": replace(
        _DEFAULT,
        optimizer="scheduler",
        estimator="ppo",
        horizon=(300, 1500),
        window=300,
        learning_rate=1e-3,
        steps=2000,
        eval_steps=1000,
        eval_seeds=32,
        eval_baselines=("sgdm", "sgdm_cosine"),
    ),
}
"""Starting points of the command line; every field can be changed by its flag."""
