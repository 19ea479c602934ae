"""Units of tensors."""

import jax
import numpy as np
import pytest

from l2o.tasks.badly_scaled import badly_scaled
from l2o.tasks.digits import (
    digits,
)
from l2o.tasks.image_mlp import image_mlp


def test_units_change_nothing_but_the_parameters():
    plain = image_mlp("plain", digits(), (8,))
    for varied in (True, False):
        task = badly_scaled(plain, varied=varied)
        k_sample, k_init, k_batch = jax.random.split(jax.random.key(0), 3)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)
        units = np.asarray(instance["units"])
        assert units.shape == (4,) and np.all((units >= 1 / 8.001) & (units <= 8.001))
        assert len(set(units.round(4))) == (4 if varied else 2)
        whole = plain.init(k_init, instance["task"])
        np.testing.assert_allclose(params["w1"] * units[3], whole["w1"], rtol=1e-5)
        batch = task.batch(k_batch, instance, task.data, "train")
        expected = plain.loss(whole, batch, instance["task"])
        np.testing.assert_allclose(task.loss(params, batch, instance), expected, rtol=1e-5)
        assert set(task.metrics(params, batch, instance)) == {"accuracy", "macro_f1"}
        assert task.all_rows is not None
        rows = task.all_rows(instance, task.data, "test")
        np.testing.assert_array_equal(rows.targets, task.data["test"].targets)
    with pytest.raises(ValueError, match="`span` must be at least 1"):
        badly_scaled(plain, varied=True, span=0.5)
