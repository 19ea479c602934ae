"""Tasks of suites."""

import pytest
from suite.bowls import entry

from l2o.suite.suite_task import SuiteTask, check_names, selected


def test_tasks_are_selected_by_name_in_the_order_of_the_suite():
    suite = [entry("a"), entry("b"), entry("c")]
    assert [e.name for e in selected(suite, ("c", "a"))] == ["a", "c"]
    assert selected(suite, ()) == tuple(suite)
    with pytest.raises(ValueError, match=r"`tasks` must be a known name; got bb\. Try b"):
        selected(suite, ("bb",))


def test_a_name_that_is_there_twice_is_refused():
    check_names([entry("a"), entry("b")])
    with pytest.raises(ValueError, match="`suite` must have tasks of different names; got a twice"):
        check_names([entry("a"), entry("b"), entry("a")])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "../../evil"}, "`name` of a suite task must be of letters, "),
        ({"name": ""}, "`name` of a suite task must be of letters"),
        ({"make": 3}, "`make` of suite task a must be a function that makes the task; got int"),
        ({"horizon": 0}, "`horizon` of suite task a must be a whole number above 0; got 0"),
        ({"solved": 0.0}, "`solved` of suite task a must be positive and finite; got 0"),
        ({"horizon": 6.5}, "`horizon` of suite task a must be a whole number above 0; got 6.5"),
        ({"solved": float("inf")}, "`solved` of suite task a must be positive and finite; got inf"),
    ],
)
def test_mistakes_are_one_line(wrong, message):
    right = {"name": "a", "make": lambda: None, "kind": "mlp", "horizon": 5, "solved": 0.1}
    with pytest.raises(ValueError, match=message):
        SuiteTask(**{**right, **wrong})
