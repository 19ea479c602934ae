"""One agent for each tensor that controls its hyperparameters."""

from collections.abc import Sequence

from l2o.policies.controller import make_controller
from l2o.policies.heads import HeadName
from l2o.policies.policy import PolicyOptimizer


def per_tensor_controller(
    base: str = "sgdm",
    hyperparameters: Sequence[str] = ("momentum", "weight_decay", "max_norm"),
    learning_rate: float = 0.1,
    lowest: float = 1e-4,
    highest: float = 3.0,
    step: float = 0.3,
    action_interval: int = 25,
    head: HeadName = "gaussian",
    core: str = "mlp",
    hidden_size: int = 32,
    networks: int = 1,
    base_sha256: str = "",
    objectives: Sequence[str] = (),
    preference: Sequence[float] = (),
) -> PolicyOptimizer:
    """Control the hyperparameters of each tensor by an agent of its own.

    >>> import l2o
    >>> lopt = l2o.per_tensor_controller("adam", hyperparameters=["b1"])
    >>> lopt.policy.head.num_outputs
    2

    Args:
        base: Name of the optimizer that is controlled, see
            `l2o.policies.base_optimizers.base_optimizer`.
        hyperparameters: Names of what is controlled besides the learning rate: momentum (b1 and b2
            for adam), weight_decay, max_norm (of the tensor's gradient).
        learning_rate: Learning rate of each tensor at the start of a run.
        lowest: Smallest learning rate.
        highest: Largest learning rate.
        step: Change of the logarithm of the rate by an action of 1.
        action_interval: Number of inner steps between two actions.
        head: "gaussian", or "squashed" for actions between -1 and 1.
        core: "mlp", or "gru" for agents with a memory.
        hidden_size: Number of units of each hidden layer.
        networks: Number of networks: 1 that all agents share; or one for each agent, for models
            with exactly so many tensors.
        base_sha256: Checksum of a learned base, which release files of the policy keep.
        objectives: Names of at least two rewards among which the policy is told what each counts,
            drawn for every run of meta-training, see `l2o.policies.preference`.
        preference: What each counts in use; equal if not given.

    Raises:
        ValueError: As `scheduler`, or if the base has no such hyperparameter.
    """
    return make_controller(
        "per_tensor_controller",
        per_tensor=True,
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
        networks=networks,
        base_sha256=base_sha256,
        objectives=objectives,
        preference=preference,
    )
