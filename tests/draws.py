"""Tasks, and draws of instance, parameters and batch."""

import functools
from typing import NamedTuple

import jax

from l2o.task import Task
from l2o.tasks.digits import (
    digits,
)
from l2o.tasks.image_mlp import image_mlp
from l2o.tasks.quadratic import rosenbrock, rotated_quadratic

SPLITS = ("train", "valid", "test")


@functools.cache
def tasks() -> dict[str, Task]:
    return {
        "quadratic": rotated_quadratic(dim=3),
        "rosenbrock": rosenbrock(noise=0.1),
        "images": image_mlp("plain", digits(), (16,)),
        "images_varied": image_mlp("varied", digits(), (16,), varied=True, batch_size=16),
    }


class Draw(NamedTuple):
    """An instance, parameters and a batch."""

    instance: object
    params: object
    batch: object


def draw(task: Task, key, split="train") -> Draw:
    k_sample, k_init, k_batch = jax.random.split(key, 3)
    instance = task.sample(k_sample)
    params = task.init(k_init, instance)
    return Draw(instance, params, task.batch(k_batch, instance, task.data, split))
