"""Tasks of suites."""

import pytest
from suite.bowls import entry

from l2o.suite.suite_task import check_names, selected


def test_tasks_are_selected_by_name_in_the_order_of_the_suite():
    suite = [entry("a"), entry("b"), entry("c")]
    assert [e.name for e in selected(suite, ("c", "a"))] == ["a", "c"]
    assert selected(suite, ()) == tuple(suite)
    with pytest.raises(ValueError, match=r"`tasks` must be a known name; got bb\. Try b"):
        selected(suite, ("bb",))


@pytest.mark.parametrize("argument", ["horizon", "solved"])
def test_numbers_that_must_be_positive_are(argument):
    with pytest.raises(
        ValueError, match=f"`{argument}` of suite task bowl must be positive; got 0"
    ):
        entry(**{argument: 0})


def test_a_name_that_is_there_twice_is_refused():
    check_names([entry("a"), entry("b")])
    with pytest.raises(ValueError, match="`suite` must have tasks of different names; got a twice"):
        check_names([entry("a"), entry("b"), entry("a")])
