"""What engines and policies came to, against medians, intervals and crossings found by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from l2o.evaluation.evaluate import Curves
from l2o.hpo.report import TaskResult, crossing_table, panel
from l2o.hpo.search import Search, Trainer, incumbents
from l2o.hpo.summary import Bound, Crossing, crossing, engine_result, policy_result, read_off
from l2o.hpo.trained_policy import Meta

STEPS = 4
RANKS = np.arange(1.0, 1002.0)
"""Their squares have the same order statistics, and a mean that is far from the median."""


def curves(losses):
    ends = np.array(losses, np.float64)
    nothing = np.zeros((len(ends), 0))
    return Curves(np.array([STEPS]), ends[:, None], nothing, ends > 1e9, {"loss": ends}, np.nan)


def an_engine(*searches, name="e", spent=None):
    """One whose every whole trial is better than the last, and ends so on the reporting seeds."""
    found = []
    for ends in searches:
        search = Search(Trainer(None, None, STEPS), STEPS * len(ends))  # pyright: ignore[reportArgumentType]
        for i in range(len(ends)):
            search.record(str(i), STEPS, STEPS, -i, np.full((STEPS, 2), i))
        found.append(list(zip(incumbents(search.reports), map(curves, ends), strict=True)))
    return read_off(name, found, spent or [STEPS * (i + 1) for i in range(len(searches[0]))])


@pytest.mark.parametrize("over", ["searches", "seeds"])
def test_the_interval_of_an_engine_is_that_of_a_median_over_searches_and_seeds(over):
    """Order statistics n/2 -+ 1.96 sqrt(n)/2 bound a median: 31 ranks off, and 26 at 90 %."""
    losses = np.square(RANKS)
    engine = an_engine([losses]) if over == "seeds" else an_engine(*losses[:, None, None])
    middle, low, high = np.sqrt(engine_result(engine).final_loss)
    assert middle == 501
    assert [middle - low, high - middle] == pytest.approx([31, 31], abs=2.5)


def test_a_crossing_is_that_of_medians_over_searches_of_medians_over_seeds():
    """After two runs means would not be as low as the policy, nor the median of all nine."""
    first, last = (90.0, 90.0, 90.0), (0.0, 0.0, 0.0)
    good, bad = [first, (1.5, 1.5, 90.0), last], [first, (90.0, 90.0, 90.0), last]
    policy = np.array([0.0, 2.0, 2.0])  # 1.3 on average
    assert crossing(policy, 100, STEPS, an_engine(good, good, bad)).middle == Bound(8, 25)


def test_an_engine_that_is_just_as_good_on_every_seed_crosses_there_in_every_draw():
    """Draws are of the same seeds for both."""
    losses = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = crossing(losses, 100, STEPS, an_engine([losses + 9.0, losses, losses]))
    assert found == Crossing("e", Bound(8, 25), Bound(8, 25), Bound(8, 25))


def test_the_interval_of_a_crossing_holds_95_percent_of_the_draws():
    """The policy's median is more than 28.5 ranks above or below 501 in 4 % of them each."""
    after = [np.full(1001, level**2) for level in (529.5, 501.0, 472.5, 0.0)]
    found = crossing(np.square(RANKS), 100, STEPS, an_engine(after))
    assert found == Crossing("e", Bound(8, 25), Bound(4, None), Bound(16, 9))


def test_an_engine_that_has_found_nothing_is_not_as_good():
    engine = an_engine([(1.0,), (1.0,)], spent=[2, 4, 8])
    assert np.isnan(engine_result(engine).median[0])
    assert crossing(np.array([2.0]), 100, STEPS, engine) == Crossing("e", *3 * [Bound(4, None)])


def a_policy(name, cost, losses, steps, engines=()):
    meta = Meta(name, None, None, cost, [])  # pyright: ignore[reportArgumentType]
    return policy_result(meta, "t", curves(losses), steps, engines)


def test_every_policy_is_set_beside_every_engine():
    engines = [
        an_engine([(9.0,), (1.0,), (1.0,)], name="fast"),
        an_engine([(9.0,), (9.0,), (1.0,)], name="slow"),
    ]
    policies = [a_policy(*each, (2.0,), STEPS, engines) for each in (("p", 100), ("q", 4000))]
    table = crossing_table(
        TaskResult("t", STEPS, 12, [engine_result(e) for e in engines], policies)
    )
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    rows = [line.split() for line in capture.get().splitlines()]
    assert ["p", "(100)", "q", "(4,000)"] in rows
    assert ["fast", "25", "1,000"] in rows and ["slow", "13", "500"] in rows


def test_a_tick_is_at_the_cost_of_a_run_and_a_share_of_meta_training():
    """Of 20,000 steps; a tenth of them is more than the budget."""
    policies = [a_policy("p", 20_000, (2.0,), 100), a_policy("before", 0, (3.0,), 100)]
    axes = Figure().subplots()
    panel(TaskResult("t", 100, 1600, [], policies))(axes)
    ticks = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(ticks, [(at, 2.0) for at in (300, 120, 102, 100.2)])
