"""What a search varies, from words."""

import pytest

from l2o.search.space import Known, Setting, parse_space

KNOWN = {
    "learning_rate": Known(0.003, float),
    "num_pairs": Known(8, int),
    "final_std": Known(None, float),
    "weight_decay": Known(0.0, float),
    "window": Known(50, int, (10, 20, 25, 50, 100, 200)),
    "shaping": Known("none", str, ("none", "sign", "rank")),
}


@pytest.mark.parametrize(
    ("word", "values", "is_range"),
    [
        ("learning_rate", (0.0003, 0.03), True),
        ("learning-rate=0.01:0.1", (0.01, 0.1), True),
        ("learning_rate=0.1,0.01", (0.1, 0.01), False),
        ("weight_decay=0:1", (0.0, 1.0), True),
        ("num_pairs", (1, 80), True),
        ("num_pairs=4:16", (4, 16), True),
        ("num_pairs=4,16", (4, 16), False),
        ("window", (20, 25, 50, 100, 200), False),
        ("window=15:60", (20, 25, 50), False),
        ("shaping", ("none", "sign", "rank"), False),
        ("shaping=sign,none", ("sign", "none"), False),
    ],
)
def test_a_word_is_a_range_or_a_list(word, values, is_range):
    (setting,) = parse_space([word], KNOWN)
    assert (setting.values, setting.is_range) == (values, is_range)
    assert [type(value) for value in setting.values] == [type(value) for value in values]


def test_ranges_of_positive_numbers_are_searched_by_their_logarithm():
    for word, is_log in (
        ("learning_rate=0.01:0.1", True),
        ("weight_decay=0:1", False),
        ("num_pairs=4:16", True),
    ):
        (setting,) = parse_space([word], KNOWN)
        assert setting.distribution.log is is_log


def test_what_a_setting_holds():
    assert Setting("std", (0.01, 0.1), True).holds(0.05)
    assert not Setting("std", (0.01, 0.1), True).holds(0.2)
    assert not Setting("std", (0.01, 0.1), True).holds(None)
    assert not Setting("std", (0.01, 0.1), False).holds(0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`over` must name settings; got none"),
        (["learningrate"], "`over` must be a known name; got learningrate. Try learning_rate"),
        (["learning_rate", "learning-rate=1:2"], "name a setting once; got learning_rate twice"),
        (["learning_rate=0.1:0.01"], "lower to a higher number; got 0.1:0.01"),
        (["learning_rate=0.1:0.1"], "lower to a higher number; got 0.1:0.1"),
        (["learning_rate=1:2:3"], "lower to a higher number; got 1:2:3"),
        (["learning_rate="], "must be of finite numbers; got nothing"),
        (["learning_rate=low:1"], "must be of finite numbers; got low"),
        (["learning_rate=0:inf"], "must be of finite numbers; got inf"),
        (["learning_rate=0.1"], "must have two values that differ, or more; got 0.1"),
        (["learning_rate=0.1,0.1"], "must have two values that differ, or more; got 0.1,0.1"),
        (["num_pairs=1.5:4"], "must be of whole numbers; got 1.5"),
        (["final_std"], "needs a range, as it is not set; got its name alone. Try final_std=0.001"),
        (["weight_decay"], "needs a range, as it is 0.0"),
        (["window=30:40"], "must hold two of 10, 20, 25, 50, 100, 200, or more; got 30:40"),
        (["window=50,70"], "must be among 10, 20, 25, 50, 100, 200; got 70"),
        (["shaping=sign,square"], "must be among none, sign, rank; got square"),
    ],
)
def test_mistakes_say_what_to_type(words, message):
    with pytest.raises(ValueError) as raised:
        parse_space(words, KNOWN)
    assert message in str(raised.value) and "\n" not in str(raised.value)
