"""One agent that schedules the learning rate of a network."""

from collections.abc import Sequence

from l2o.policies.controller import make_controller
from l2o.policies.heads import HeadName
from l2o.policies.policy import PolicyOptimizer


def scheduler(
    base: str = "sgdm",
    learning_rate: float = 0.1,
    lowest: float = 1e-4,
    highest: float = 3.0,
    step: float = 0.3,
    action_interval: int = 25,
    head: HeadName = "gaussian",
    core: str = "mlp",
    hidden_size: int = 32,
    hyperparameters: Sequence[str] = (),
    base_sha256: str = "",
    objectives: Sequence[str] = (),
    preference: Sequence[float] = (),
) -> PolicyOptimizer:
    """Schedule the learning rate of a whole network by one agent.

    >>> import l2o
    >>> lopt = l2o.scheduler("adam", learning_rate=0.01, hyperparameters=["weight_decay"])
    >>> lopt.policy.head.num_outputs
    2

    Args:
        base: Name of the optimizer that is controlled, see
            `l2o.policies.base_optimizers.base_optimizer`; for a learned optimizer the rate is a
            factor of its steps.
        learning_rate: Learning rate at the start of a run.
        lowest: Smallest learning rate.
        highest: Largest learning rate.
        step: Change of the logarithm of the rate by an action of 1.
        action_interval: Number of inner steps between two actions.
        head: "gaussian", or "squashed" for actions between -1 and 1.
        core: "mlp", or "gru" for an agent with a memory.
        hidden_size: Number of units of each hidden layer.
        hyperparameters: Names of what is controlled besides the rate: batch_fraction, the part of
            each batch that counts, and what `per_tensor_controller` controls.
        base_sha256: Checksum of a learned base, which release files of the policy keep.
        objectives: Names of at least two rewards among which the policy is told what each counts,
            drawn for every run of meta-training, see `l2o.policies.preference`.
        preference: What each counts in use; equal if not given.

    Raises:
        ValueError: If the range of rates is empty or the initial rate outside it,
            `action_interval` < 1, a name is unknown, or the learned base is not the one it was.
    """
    return make_controller(
        "scheduler",
        per_tensor=False,
        base=base,
        hyperparameters=hyperparameters,
        learning_rate=learning_rate,
        lowest=lowest,
        highest=highest,
        step=step,
        action_interval=action_interval,
        head=head,
        core=core,
        hidden_size=hidden_size,
        base_sha256=base_sha256,
        objectives=objectives,
        preference=preference,
    )
