"""Families of tasks that differ in their size."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from l2o import Task, TaskFamily

Size = TypeVar("Size")


def sized_family(
    name: str,
    make: Callable[..., Task],
    meta_trained: Mapping[str, Size],
    held_out: Mapping[str, Size],
) -> TaskFamily:
    """Make a family of one kind of task at several sizes.

    Args:
        name: Name of the family, with which those of its tasks begin.
        make: Function `(name, size, varied=) -> task`.
        meta_trained: Sizes that are meta-trained on, as varied instances, by label; plain ones are
            reported on.
        held_out: Sizes that are reported on and never meta-trained on, by label.
    """
    return TaskFamily(
        name=name,
        train=tuple(
            make(f"{name}_{label}_varied", size, varied=True)
            for label, size in meta_trained.items()
        ),
        evaluation=tuple(
            make(f"{name}_{label}", size, varied=False)
            for label, size in {**meta_trained, **held_out}.items()
        ),
    )
