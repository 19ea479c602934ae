"""The Python of docs/adversaries.md runs as it stands."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "adversaries.md"


@pytest.fixture(scope="module")
def page():
    """Number of blocks, their names when all have been run, and what they print."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for block in blocks:
            exec(block, names)
    return len(blocks), names, [float(line) for line in out.getvalue().split()]


def test_the_page_runs(page):
    number, names, printed = page
    assert number == 4 and names["family"].train
    robust_accuracy, success = printed
    assert 0.0 <= robust_accuracy < 0.9 and 0.3 < success <= 1.0


def test_what_the_attack_of_the_page_has_found_fools_its_network(page):
    _, names, _ = page
    victim, fooling, task = names["victim"], names["fooling"], names["plain"]
    inputs = victim.batch.inputs
    assert 0.09 < abs(fooling - inputs).max() <= 0.1 + 1e-6
    assert fooling.min() >= 0.0 and fooling.max() <= 1.0
    right = lambda batch: float(task.metrics(victim.params, batch, victim.instance)["accuracy"])
    left = right(victim.batch._replace(inputs=fooling))
    assert left == pytest.approx(1.0 - page[2][1]) and left <= right(victim.batch) - 0.3
