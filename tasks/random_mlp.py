"""Random architectures: multilayer perceptrons whose sizes are drawn."""

import jax

from l2o import Key, Task, log_uniform
from l2o.tasks.digits import digits
from l2o.tasks.image_mlp import image_mlp


def random_digits_mlp(key: Key) -> Task:
    """Draw an MLP on handwritten digits: 0 to 4 hidden layers, of 8 to 128 units each.

    The number of layers is uniform and their common width log-uniform, as in VeLO (Metz et al.
    2022, arXiv:2211.09760). It is a part of a mixture:

    >>> import l2o
    >>> [task.name for task in l2o.mixture({random_digits_mlp: 1.0}, num_tasks=2).train]
    ['digits_mlp_20x20x20_varied', 'digits_mlp_40x40x40x40_varied']

    Args:
        key: Random key.
    """
    k_layers, k_width = jax.random.split(key)
    width = int(log_uniform(k_width, 8, 129))
    sizes = (width,) * int(jax.random.randint(k_layers, (), 0, 5))
    label = "x".join(map(str, sizes)) or "linear"
    return image_mlp(
        f"digits_mlp_{label}_varied", digits(), sizes, varied=True, family="digits_mlp"
    )
