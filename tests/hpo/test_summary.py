"""What engines and policies came to, against medians, intervals and break-evens found by hand."""

import dataclasses

import numpy as np
import pytest
from hpo_search import FakeCurves, a_report
from matplotlib.figure import Figure
from rich.console import Console
from user_module import bowl

from l2o.evaluation.training import Curves
from l2o.hpo.report import TaskResult, break_even_table, num_tasks, panel
from l2o.hpo.search import Search, Trainer, incumbents
from l2o.hpo.summary import (
    Bound,
    BreakEven,
    Searches,
    break_even,
    collect_searches,
    engine_result,
    losses_after,
    policy_result,
)
from l2o.hpo.trained_policy import TrainedPolicy

STEPS = 4


RANKS = np.arange(1.0, 1002.0)
"""Their squares have the same order statistics, and a mean that is far from the median."""


def curves(losses):
    ends = np.array(losses, np.float64)
    nothing = np.zeros((len(ends), 0))
    return Curves(np.array([STEPS]), ends[:, None], nothing, ends > 1e9, {}, {"loss": ends}, np.nan)


def an_engine(*searches, name="e", budgets=None, kept=(0.0, -1.0, -2.0, -3.0)):
    """One whose every whole trial is better than the last, and ends so on the reporting seeds."""
    found = []
    for ends in searches:
        search = Search(Trainer(None, None, STEPS), STEPS * len(ends))  # pyright: ignore[reportArgumentType]
        for i in range(len(ends)):
            search.record(str(i), STEPS, STEPS, kept[i], np.full((STEPS, 2), i))
        found.append(list(zip(incumbents(search.reports), map(curves, ends), strict=True)))
    return collect_searches(
        name, found, budgets or [STEPS * (i + 1) for i in range(len(searches[0]))]
    )


@pytest.mark.parametrize("over", ["searches", "seeds"])
def test_the_interval_of_an_engine_is_that_of_a_median_over_searches_and_seeds(over):
    """Order statistics n/2 -+ 1.96 sqrt(n)/2 bound a median: 31 ranks off, and 26 at 90 %."""
    losses = np.square(RANKS)
    engine = an_engine([losses]) if over == "seeds" else an_engine(*losses[:, None, None])
    middle, low, high = np.sqrt(engine_result(engine).final_loss)
    assert middle == 501
    assert [middle - low, high - middle] == pytest.approx([31, 31], abs=2.5)


def keeping(*searches, budgets=None):
    """Searches whose best trials have these losses on their own problems."""
    kept = np.array(searches)
    budgets = budgets or [STEPS * (i + 1) for i in range(kept.shape[1])]
    others = np.full((*kept.shape, 1), np.nan)
    return Searches("e", budgets, others, kept, np.zeros(kept.shape), [])


def test_a_break_even_is_that_of_medians_over_searches_and_over_seeds():
    """After two runs means would not be as low as the policy."""
    good, bad = (90.0, 1.5, 0.0), (90.0, 90.0, 0.0)
    policy = np.array([0.0, 2.0, 2.0])  # 1.3 on average
    assert break_even(policy, 100, STEPS, keeping(good, good, bad)).middle == Bound(8, 25)


def test_an_engine_is_judged_by_the_model_it_keeps_and_not_by_its_schedule_elsewhere():
    runs = [(a_report(4, loss=3.0), FakeCurves(9.0)), (a_report(8, loss=1.0), FakeCurves(9.0))]
    engine = collect_searches("e", [runs], [4, 8])
    assert break_even(np.array([2.0]), 100, 4, engine).middle == Bound(8, 25)
    assert engine_result(engine).median == [9.0, 9.0]


def test_the_interval_of_a_break_even_holds_95_percent_of_the_draws():
    """The policy's median is more than 28.5 ranks above or below 501 in 4 % of them each."""
    kept = [level**2 for level in (529.5, 501.0, 472.5, 0.0)]
    found = break_even(np.square(RANKS), 100, STEPS, keeping(kept))
    assert found == BreakEven("e", Bound(8, 25), Bound(4, None), Bound(16, 9))


def test_an_engine_that_has_found_nothing_is_not_as_good():
    engine = an_engine([(1.0,), (1.0,)], budgets=[2, 4, 8])
    assert np.isnan(engine_result(engine).median[0]) and np.isnan(engine.kept_losses[0, 0])
    assert break_even(np.array([2.0]), 100, STEPS, engine) == BreakEven("e", *3 * [Bound(4, None)])


def a_policy(name, cost, losses, steps, engines=()):
    meta = TrainedPolicy(name, None, None, cost, [])  # pyright: ignore[reportArgumentType]
    return policy_result(meta, bowl(), curves(losses), steps, engines)


def test_every_policy_is_set_beside_every_engine():
    engines = [
        an_engine([(9.0,) * 8] * 3, name="fast", kept=(9.0, 1.0, 0.5)),
        an_engine([(9.0,) * 8] * 3, name="slow", kept=(9.0, 8.0, 1.0)),
    ]
    policies = [a_policy(*each, (2.0,) * 8, STEPS, engines) for each in (("p", 100), ("q", 4000))]
    table = break_even_table(
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
    policies = [a_policy("p", 20_000, (2.0,) * 8, 100), a_policy("b", 0, (3.0,) * 8, 100)]
    axes = Figure().subplots()
    panel(TaskResult("t", 100, 1600, [], policies))(axes)
    ticks = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(ticks, [(at, 2.0) for at in (300, 120, 102, 100.2)])


def test_curves_over_the_budget_used_are_medians_of_medians():
    a = [
        (a_report(4), FakeCurves(3.0, 5.0, 4.0)),
        (a_report(12), FakeCurves(1.0, 1.0, 0.0)),
    ]
    b = [(a_report(8), FakeCurves(2.0, 9.0, 5.5))]
    assert np.all(np.isnan(losses_after(b, 4)))
    np.testing.assert_array_equal(losses_after(a, 8), [3.0, 5.0, 4.0])
    np.testing.assert_array_equal(losses_after(a, 12), [1.0, 1.0, 0.0])
    result = engine_result(collect_searches("e", [a, b], [4, 8, 12]))
    np.testing.assert_allclose(result.median, [np.nan, 4.75, 3.25])
    np.testing.assert_allclose(result.low, [np.nan, 4.375, 2.125])
    np.testing.assert_allclose(result.high, [np.nan, 5.125, 4.375])
    assert result.final_loss.median == 3.25 and result.diverged == pytest.approx(2 / 6)
    assert result.final_loss.low == 0.0 and result.final_loss.high == 9.0  # of searches and seeds
    mean = np.mean([1.0, 1.0, 0.0, 2.0, 9.0, 5.5])
    assert result.test == pytest.approx({"loss": mean, "accuracy": mean / 10})


def test_a_policy_and_an_engine_break_even_where_the_engine_stays_as_good():
    """A run has 4 steps and meta-training 100: the engine pays what it took, the policy 4."""
    losses = (4.0, 1.5, 3.0, 1.0)
    runs = [(a_report(4 * i + 4, loss=loss), FakeCurves(loss)) for i, loss in enumerate(losses)]
    engine = collect_searches("e", [runs], [4, 8, 12, 16])
    at = lambda loss: break_even(np.array([loss]), 100, 4, engine).middle
    assert at(4.5) == Bound(4, None)  # its first run is as good: nothing is saved
    assert at(3.5) == Bound(8, 25)
    assert at(2.0) == Bound(16, 9)  # after 8 steps, too, but not for long
    assert at(0.5) == Bound(None, 9)  # an upper bound
    shown = [num_tasks(break_even(np.array([x]), 100, 4, engine)) for x in (4.5, 3.5, 0.5)]
    assert shown == ["never\n[never, never]", "25\n[25, 25]", "≤ 9\n[≤ 9, ≤ 9]"]


def test_break_evens_have_intervals_over_searches():
    """Two searches reach the policy's loss after 8 and after 12 steps; all draws of two of them."""
    slow = [(a_report(4, loss=4.0), FakeCurves(4.0)), (a_report(12, loss=1.0), FakeCurves(1.0))]
    fast = [(a_report(4, loss=4.0), FakeCurves(4.0)), (a_report(8, loss=1.0), FakeCurves(1.0))]
    found = break_even(np.array([2.0]), 100, 4, collect_searches("e", [slow, fast], [4, 8, 12]))
    assert found == BreakEven("e", Bound(12, 13), Bound(8, 25), Bound(12, 13))
    assert num_tasks(found) == "13\n[13, 25]"


def test_a_trial_that_is_not_whole_yet_is_still_to_be_trained():
    """The best trial of one of two searches is 3, then 1 of 4 steps short of its end."""
    curves = [FakeCurves(4.0), FakeCurves(1.0), FakeCurves(1.0)]
    reports = lambda *steps: [
        a_report(4 * i + 4, step, loss)
        for i, (step, loss) in enumerate(zip(steps, (4.0, 1.0, 1.0), strict=True))
    ]
    slow = zip(reports(1, 3, 4), curves, strict=True)
    fast = zip(reports(4, 4, 4), curves, strict=True)
    engine = collect_searches("e", [list(slow), list(fast)], [2, 4, 8, 12])
    np.testing.assert_array_equal(engine.steps_to_finish, [[4, 3, 1, 0], [4, 0, 0, 0]])
    at = lambda loss: break_even(np.array([loss]), 180, 4, engine).middle
    assert at(5.0) == Bound(4, 120)  # 4 + 1.5 steps less the policy's 4
    assert at(2.0) == Bound(8, 40)
    assert at(0.5) == Bound(None, 23)


def test_a_policy_is_seen_only_on_its_own_tasks_and_free_before_meta_training():
    engine = collect_searches("e", [[(a_report(4), FakeCurves(*[4.0] * 8))]], [4, 8])
    policy = TrainedPolicy("p", None, None, 100, ["mine"])  # pyright: ignore[reportArgumentType]
    results = [
        policy_result(
            meta, dataclasses.replace(bowl(), name=name), FakeCurves(*[2.0] * 8), 4, [engine]
        )  # pyright: ignore[reportArgumentType]
        for meta in (policy, dataclasses.replace(policy, inner_steps=0, trained_on=()))
        for name in ("mine", "other")
    ]
    assert [result.is_seen for result in results] == [True, False, False, False]
    assert [len(result.break_even) for result in results] == [1, 1, 0, 0]
    whole = TaskResult("t", 4, 8, [engine_result(engine)], results[2:])
    assert break_even_table(whole) is None
    assert break_even_table(dataclasses.replace(whole, policies=results)).row_count == 1
