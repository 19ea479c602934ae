"""Public names are documented in sentences that stand alone, constructors with an example."""

import pytest

import l2o
from l2o.registry import DESIGNS, ESTIMATORS

NOT_YET_A_SENTENCE: set[str] = set()
"""Known gaps: names whose docstring does not begin with a sentence. To be emptied."""

NOT_YET_AN_EXAMPLE: set[str] = set()
"""Known gaps: constructors without an example."""

CALLABLES = sorted(
    name
    for name in l2o.__all__
    if callable(thing := getattr(l2o, name)) and getattr(thing, "__module__", "").startswith("l2o")
)
"""Functions and classes of l2o, without the types that others define."""


def is_sentence(line: str) -> bool:
    """Whether a first line begins like a sentence, is no genitive, and ends."""
    return line.endswith(".") and not line[:1].islower() and not line.startswith(("Of ", "As "))


def gaps(names, is_good) -> set[str]:
    return {name for name in names if not is_good(name)}


def test_there_are_public_names():
    assert {"Task", "LearnedOptimizer", "fit", "pes", "celo"} <= set(CALLABLES)


def test_first_lines_are_sentences():
    first_line = lambda name: (getattr(l2o, name).__doc__ or "").strip().split("\n")[0]
    assert gaps(CALLABLES, lambda name: is_sentence(first_line(name))) == NOT_YET_A_SENTENCE


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Rescale updates.", True),
        ("PES: unbiased whatever the window.", True),
        ("Rescale updates", False),
        ("of it.", False),
        ("Of what.", False),
        ("", False),
    ],
)
def test_what_a_sentence_is(line, expected):
    assert is_sentence(line) == expected


def test_constructors_have_examples():
    constructors = {**DESIGNS, **ESTIMATORS}
    has_example = lambda name: ">>> " in (constructors[name].__doc__ or "")
    assert gaps(constructors, has_example) == NOT_YET_AN_EXAMPLE


def test_public_names_that_a_user_meets_first_have_examples():
    names = ["Task", "TaskFamily", "LearnedOptimizer", "fit", "save", "load", "optimizer"]
    assert not gaps(names, lambda name: ">>> " in (getattr(l2o, name).__doc__ or ""))
