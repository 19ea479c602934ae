"""Which tasks an optimizer was meta-trained on: by family, data and shape."""

import hashlib
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import jax
import numpy as np

from l2o.augmentation.augmented import plain_name
from l2o.task import Task

SOURCE = "source:"
"""What a signature of family and data begins with."""


def task_signature(task: Task) -> str:
    """Hash a task's family, the content of its data and the shapes of its parameters.

    Tasks of one signature are variants of each other: an optimizer that was meta-trained on one has
    seen the other. The precision that parameters are stored in makes no difference.

    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> task_signature(rotated_quadratic(2)) == task_signature(rotated_quadratic(2, noise=0.5))
    True
    >>> task_signature(rotated_quadratic(2)) == task_signature(rotated_quadratic(3))
    False

    Returns:
        A sha256 in hexadecimal.
    """

    def params(key: jax.Array):
        k_sample, k_init = jax.random.split(key)
        return task.init(k_init, task.sample(k_sample))

    digest = hashlib.sha256((task.family or task.name).encode())
    for leaf in jax.tree.leaves(jax.eval_shape(params, jax.random.key(0))):
        # All are floats; files of before this was so hold signatures of float32 tasks.
        digest.update(f"\nparam float32{leaf.shape}".encode())
    for chunk in _content(task):
        digest.update(chunk)
    return digest.hexdigest()


def source_signature(task: Task) -> str:
    """Hash a task's family and the content of its data, whatever the shapes of its parameters.

    Tasks of one signature are networks of one kind on the same data, of any size.

    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> source_signature(rotated_quadratic(2)) == source_signature(rotated_quadratic(3))
    True

    Returns:
        "source:" and a sha256 in hexadecimal.
    """
    digest = hashlib.sha256((task.family or task.name).encode())
    for chunk in _content(task):
        digest.update(chunk)
    return f"{SOURCE}{digest.hexdigest()}"


def _content(task: Task) -> Iterator[bytes]:
    """The data of a task as bytes, each array after its dtype and shape."""
    for leaf in jax.tree.leaves(task.data):
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        yield f"\ndata {array.dtype}{array.shape}\n".encode()
        yield array.tobytes()


def names_and_signatures(tasks: Sequence[Task]) -> list[str]:
    """List what `seen` takes of the tasks that an optimizer was meta-trained on."""
    signatures = {sign(task) for task in tasks for sign in (task_signature, source_signature)}
    return [task.name for task in tasks] + sorted(signatures)


def is_seen(task: Task, seen: AbstractSet[str]) -> bool:
    """Tell whether an optimizer was meta-trained on a task, or on a variant of it.

    Args:
        task: Task to evaluate on.
        seen: Names, signatures or both of the tasks that the optimizer was meta-trained on. By name
            a task is a variant of another whose name is longer by `_varied` or what augmentations
            add.
    """
    name = plain_name(task.name)
    if not {plain_name(other) for other in seen}.isdisjoint({name, f"{name}_varied"}):
        return True
    return bool(seen) and task_signature(task) in seen


def shares_source(task: Task, seen: AbstractSet[str]) -> bool:
    """Tell whether an optimizer was meta-trained on a task's family and data, at any size.

    Args:
        task: Task to evaluate on.
        seen: As for `is_seen`; files of before there were signatures of sources are told by names
            and shapes alone.
    """
    return is_seen(task, seen) or (bool(seen) and source_signature(task) in seen)


def check_held_out(
    tasks: Sequence[Task], train: Sequence[Task], seen: AbstractSet[str], argument: str
) -> None:
    """Raise a `ValueError` if tasks to validate on are not apart from what is meta-trained on.

    That is stricter than `is_seen`: another shape of the same family and data is refused, too.

    Args:
        tasks: Tasks to validate on.
        train: Tasks that are meta-trained on.
        seen: Names, signatures or both of further tasks that were meta-trained on.
        argument: Argument that named `tasks`, for the message.
    """
    seen = seen | frozenset(names_and_signatures(train))
    for task in tasks:
        if shares_source(task, seen):
            raise ValueError(
                f"`{argument}` must name held-out tasks; got {task.name}, of a family and data "
                "that are meta-trained on. Try another family."
            )


def check_unseen(
    task: Task, seen: AbstractSet[str], allow_seen: bool, how: str = "meta-trained on"
) -> None:
    """Raise a `ValueError` if a task is among those seen, unless that is allowed.

    Args:
        task: Task to evaluate on.
        seen: Names, signatures or both of those tasks; see `is_seen`.
        allow_seen: Whether it may be.
        how: What was done on those tasks, for the message: "meta-trained on" or "validated on".
    """
    if not allow_seen and is_seen(task, seen):
        raise ValueError(
            f"`task` must not be one that was {how}; got {task.name}. "
            f"Try a held-out variant, or allow_seen=True to have it marked as {how.split()[0]}."
        )
