"""What a patient person does."""

import numpy as np
from hpo_search import RUNS, STEPS, searched

from l2o.hpo.engines import ENGINES
from l2o.hpo.search import Search, Trainer


def test_a_person_begins_in_the_middle_of_the_grid(trainer, tmp_path):
    reports = searched("cosine", trainer[0], 0, tmp_path).reports
    whole = [report.schedule for report in reports if report.step == STEPS]
    points = [(float(f"{rows[0, 0]:.4g}"), float(f"{rows[0, 1]:.4g}")) for rows in whole]
    grid = [10.0 ** (k / 2) for k in (-4, -3, -5, -2, -6, -1, -7, 0, -8)]
    np.testing.assert_allclose([rate for rate, _ in points[:9]], grid, rtol=1e-3)
    assert len({rate for rate, _ in points[9:15]}) < 6 and len(set(points)) == RUNS
    np.testing.assert_allclose(points[0][1], 0.9)
    np.testing.assert_allclose(reports[7].schedule[-1, 0], 0.0, atol=1e-4)


class Bowl(Search):
    """A search on a loss that is lowest at a rate of 0.01 and a friction of 0.5."""

    def train(self, rows):
        loss = float(np.abs(np.log(first_point(rows)) - np.log([0.01, 0.5])).sum())
        self.record(str(len(self.reports)), len(rows), len(rows), loss, rows)
        return loss


def first_point(rows):
    """The first rate of a schedule and its friction."""
    return rows[0] * [1.0, -1.0] + [0.0, 1.0]


def test_a_person_then_tries_what_is_ever_closer_to_the_best(tmp_path):
    """Rate and friction, one at a time, by a factor of 2, then its root and the root of that."""
    search = Bowl(Trainer(None, None, 4), 4 * 26)
    ENGINES["cosine"].search(search, 0, tmp_path)
    points = [first_point(report.schedule) for report in search.reports]
    closer = [
        *((0.005, 0.5), (0.02, 0.5), (0.01, 0.25)),  # a friction of 1 was tried before
        *((0.0070711, 0.5), (0.0141421, 0.5), (0.01, 0.353553), (0.01, 0.707107)),
        *((0.0084090, 0.5), (0.0118921, 0.5), (0.01, 0.420448), (0.01, 0.594604)),
    ]
    np.testing.assert_allclose(points[15:], closer, rtol=1e-5)
