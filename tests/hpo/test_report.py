"""Tables of results."""

from hpo_search import FakeCurves, a_report
from rich.console import Console

from l2o.hpo.report import TaskResult, loss_table
from l2o.hpo.summary import (
    collect_searches,
    engine_result,
)


def test_the_table_shows_one_run_half_of_them_and_all():
    runs = [(a_report(4 * i + 4), FakeCurves(1.0 / (i + 1))) for i in range(8)]
    result = engine_result(collect_searches("e", [runs], [4 * i + 4 for i in range(8)]))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(loss_table(TaskResult("t", 4, 32, [result], [])))
    row = next(line for line in capture.get().splitlines() if line.strip().startswith("e "))
    assert row.split()[:4] == ["e", "1", "0.25", "0.12"]
