import re
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from l2o.evaluation import plots
from l2o.evaluation.aggregate_plots import heat_map, improvements, intervals, profiles
from l2o.evaluation.aggregates import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)
from l2o.evaluation.transfer import transfer_matrix

RNG = np.random.default_rng(0)
SCORES = {name: RNG.uniform(size=(8, 3)) for name in ("learned $a$ & $b$", "adam", "_<untrained>")}
THRESHOLDS = np.linspace(0.0, 1.0, 11)
NAMES = list(SCORES)
TEXT = "learned $a$ &amp; $b$"

ESTIMATES = {
    name: stratified_bootstrap(scores, interquartile_mean, num_resamples=100)
    for name, scores in SCORES.items()
}
BANDS = {
    name: stratified_bootstrap(
        scores, partial(performance_profile, thresholds=THRESHOLDS), num_resamples=100
    )
    for name, scores in SCORES.items()
}
GAINS = {
    name: stratified_bootstrap([SCORES[NAMES[0]], scores], probability_of_improvement)
    for name, scores in SCORES.items()
}
MATRIX = transfer_matrix(
    [
        ("x", "mlps", "mlps", SCORES["adam"]),
        ("x", "mlps", "$convs$", SCORES["adam"] - 1.0),
        ("y", "$convs$", "$convs$", SCORES["adam"] + 1.0),
    ],
    num_resamples=100,
)


def drawn(panel):
    axes = Figure().add_subplot()
    panel(axes)
    return axes


def test_a_profile_is_drawn_in_its_band():
    axes = drawn(profiles(THRESHOLDS, BANDS, title="all tasks"))
    assert len(axes.lines) == len(axes.collections) == 3
    for line, area, (value, low, high) in zip(
        axes.lines, axes.collections, BANDS.values(), strict=True
    ):
        assert line.get_xdata() == pytest.approx(THRESHOLDS)
        assert line.get_ydata() == pytest.approx(value, abs=1e-12)
        corners = area.get_paths()[0].vertices
        for end in (low, high):
            assert {(x, y) for x, y in zip(THRESHOLDS, end, strict=True) if y > 0} <= {
                (x, y) for x, y in corners
            }
    assert len({line.get_color() for line in axes.lines}) == 3
    assert axes.get_xscale() == "linear"
    assert drawn(profiles(THRESHOLDS + 1, BANDS, is_log=True)).get_xscale() == "log"


def test_numbers_are_dots_in_their_intervals_the_first_at_the_top():
    axes = drawn(intervals(ESTIMATES, reference=0.25))
    *pairs, reference = axes.lines
    assert list(reference.get_xdata()) == [0.25, 0.25]
    for i, (value, low, high) in enumerate(ESTIMATES.values()):
        assert list(pairs[2 * i].get_xdata()) == [low, high]
        assert pairs[2 * i].get_solid_capstyle() == "butt"  # others go beyond the ends
        assert list(pairs[2 * i + 1].get_xdata()) == [value]
        assert list(pairs[2 * i + 1].get_ydata()) == [i]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert len(drawn(intervals(ESTIMATES)).lines) == 6


def test_improvement_is_shown_beside_an_even_chance():
    axes = drawn(improvements("learned", GAINS))
    assert list(axes.lines[-1].get_xdata()) == [0.5, 0.5]
    assert axes.get_xlim() == (-0.02, 1.02)
    assert axes.get_xlabel() == "P(learned > rival)"


def test_a_heat_map_has_rows_trained_on_columns_tested_on_and_gaps():
    axes = drawn(heat_map(MATRIX))
    (image,) = axes.images
    assert np.ma.filled(image.get_array(), np.nan) == pytest.approx(
        MATRIX.estimate.value, nan_ok=True
    )
    assert [t.get_text() for t in axes.get_xticklabels()] == ["mlps", r"\$convs\$"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["mlps", r"\$convs\$"]
    assert axes.get_xlabel() == "tested on" and axes.get_ylabel() == "meta-trained on"
    shown = {t.get_position(): t for t in axes.texts}
    assert shown.keys() == {(0, 0), (1, 0), (1, 1)}  # column, row
    value, low, high = (x[0, 1] for x in MATRIX.estimate)
    assert shown[1, 0].get_text() == f"{value:.2g}\n[{low:.2g}, {high:.2g}]"
    assert shown[1, 0].get_color() == "white" and shown[1, 1].get_color() == "black"
    alone = transfer_matrix([("x", "mlps", "convs", SCORES["adam"])], num_resamples=10)
    assert drawn(heat_map(alone)).texts[0].get_color() == "white"


def test_names_are_shown_as_they_are_on_every_panel():
    panels = [
        profiles(THRESHOLDS, BANDS),
        intervals(ESTIMATES, title="$x$ and $y$"),
        improvements(NAMES[0], GAINS),
        heat_map(MATRIX, value_label="$v$"),
    ]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plots.svg(panels))
    assert texts.count(TEXT) == 3
    assert sum("_&lt;untrained&gt;" in text for text in texts) == 3
    assert {f"P({TEXT} &gt; rival)", "$x$ and $y$", "$convs$", "$v$"} <= set(texts)
    assert plots.image([panels[:2], panels[2:]]).startswith(b"\x89PNG")
