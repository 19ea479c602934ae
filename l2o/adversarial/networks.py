"""Trained networks, which attacks are meta-trained and judged on."""

from typing import NamedTuple

import jax
import optax

from l2o.adversarial.inputs import check_steps
from l2o.augmentation.augmented import check_is_task
from l2o.inner_step import inner_step
from l2o.leaves import require_transformation
from l2o.task import Data, Instance, Key, Task


class Networks(NamedTuple):
    """Trained networks of one task.

    Attributes:
        params: Parameters, each array with a first axis of networks.
        instances: Instances of the task that they were trained on, likewise.
    """

    params: optax.Params
    instances: Instance


def trained_networks(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    number: int,
    steps: int,
) -> Networks:
    """Train networks of a task from different starts, all at once.

    >>> import jax, l2o, optax
    >>> from l2o.tasks.digits import digits_mlp
    >>> task = digits_mlp().evaluation[0]
    >>> networks = l2o.trained_networks(
    ...     task, optax.adam(0.003), jax.random.key(0), number=2, steps=20
    ... )
    >>> networks.params["w0"].shape
    (2, 64, 32)

    Args:
        task: Task to train; one of `l2o.robust` gives networks that withstand more.
        optimizer: Any optax transformation, learned ones included.
        key: Random key; other keys give other networks.
        number: Number of networks.
        steps: Training steps of each.

    Raises:
        ValueError: If it is no task, or a number is not above 0.
    """
    check_is_task(task, trained_networks)
    check_steps(number=number, steps=steps)
    tx = require_transformation(optimizer, "optimizer")

    def train(k_network: Key, data: Data) -> Networks:
        k_sample, k_init, k_train = jax.random.split(k_network, 3)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)

        def step(carry: tuple[optax.Params, optax.OptState], k_batch: Key):
            params, opt_state, *_ = inner_step(task, tx, k_batch, *carry, instance, data)
            return (params, opt_state), None

        first = params, tx.init(params)
        (params, _), _ = jax.lax.scan(step, first, jax.random.split(k_train, steps))
        return Networks(params, instance)

    keys = jax.random.split(key, number)
    return jax.jit(jax.vmap(train, (0, None)))(keys, task.data)


def check_networks(networks: Networks, task: Task) -> int:
    """Number of the networks, which must be those of a task.

    Raises:
        ValueError: If they are not.
    """

    def draw(key: Key) -> Networks:
        instance = task.sample(key)
        return Networks(task.init(key, instance), instance)

    one = jax.eval_shape(draw, jax.random.key(0))
    shapes = lambda tree: [(jax.numpy.shape(x), x.dtype) for x in jax.tree.leaves(tree)]
    leaves = jax.tree.leaves(networks) if isinstance(networks, Networks) else []
    number = len(leaves[0]) if leaves and jax.numpy.ndim(leaves[0]) else 0
    expected = [((number, *shape), dtype) for shape, dtype in shapes(one)]
    same = jax.tree.structure(networks) == jax.tree.structure(one)
    if not number or not same or shapes(networks) != expected:
        given = f"{number} of others" if leaves else type(networks).__name__
        raise ValueError(
            f"`networks` must be l2o.Networks of task {task.name}, with a first axis of networks; "
            f"got {given}. Try l2o.trained_networks(task, optax.adam(0.003), key, number=8, "
            "steps=300)."
        )
    return number
