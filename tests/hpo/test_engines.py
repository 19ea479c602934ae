"""Engines search their space within their budget, and by their seed."""

import numpy as np
import pytest
from hpo_search import STEPS, searched

from l2o.hpo.engines import ENGINES
from l2o.hpo.schedule import SPACE
from l2o.hpo.search import incumbents

IN_PROCESS = [name for name in ENGINES if name != "ray_pbt"]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_an_engine_searches_its_space_within_its_budget(name, trainer, tmp_path):
    search = searched(name, trainer[0], 1, tmp_path)
    assert search.budget - STEPS < search.budget_used <= search.budget
    low, high = np.array(list(SPACE.values())).T
    for report in search.reports:
        assert np.all(report.schedule[:, 0] <= high[0] * 1.0001)
        assert low[0] * 0.9999 <= report.schedule[0, 0]
        assert np.all((report.schedule[:, 1] >= 0) & (report.schedule[:, 1] <= 0.9901))
    last = incumbents(search.reports)[-1]
    whole = [report.loss for report in search.reports if report.step == STEPS]
    assert last.step == STEPS and last.loss == min(whole) < whole[0]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_search_is_a_function_of_its_seed(name, trainer, tmp_path):
    first, again = (searched(name, trainer[0], 1, tmp_path) for _ in range(2))
    other = searched(name, trainer[0], 2, tmp_path)
    losses = [[report.loss for report in search.reports] for search in (first, again, other)]
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == (name == "cosine")  # nothing of which is random
