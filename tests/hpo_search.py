"""Trials, reports and curves for the tests of `l2o.hpo`."""

import numpy as np

from l2o.hpo.engines import ENGINES
from l2o.hpo.search import Report, Search

STEPS = 20


RUNS = 16


def searched(name, trainer, seed, folder):
    search = Search(trainer, RUNS * STEPS)
    ENGINES[name].search(search, seed, folder)
    return search


def a_report(budget_used, step=4, loss=0.0, trial="a", rate=0.0):
    return Report(budget_used, trial, step, loss, np.full((4, 2), rate))


class FakeCurves:
    """What of `Curves` is read."""

    def __init__(self, *losses):
        self.final_loss = np.array(losses)
        self.diverged = self.final_loss > 5
        self.test = {"loss": self.final_loss, "accuracy": self.final_loss / 10}
