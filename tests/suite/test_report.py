"""The report of a suite, and how it looks in a browser."""

import html.parser
import json
import shutil

import pytest
from suite.bowls import entry, result

from l2o.suite.entrant import Entrant, find_entrants
from l2o.suite.report import read_suite_report, render_suite_report, write_suite_report
from l2o.suite.summary import summarise
from l2o.suite.tables import findings


def summary():
    (adam,) = find_entrants(["adam"])
    seen = frozenset({"two"})
    ours = Entrant("<ours>", adam.baseline, seen=seen, families=("bowls",), is_learned=True)
    results = [
        *(result(task, "adam", train=[16.0, 8.0, 4.0]) for task in ("one", "two")),
        result("one", "<ours>", train=[16.0, 4.0, 2.0], is_tuned=False),
        result("two", "<ours>", train=[16.0, 50.0, 50.0], diverged=True, is_seen=True),
    ]
    suite = [entry("one"), entry("two", kind="conv", axis="width x8")]
    return summarise(suite, results, "adam", [ours, adam])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    config = {"command": "l2o suite --optimizer ours"}
    write_suite_report(path, summary(), suite="suite-1", config=config)
    return path


class Links(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src")]


def test_the_first_lines_say_where_an_optimizer_fails_loses_and_wins(folder):
    found = findings(read_suite_report(folder))
    assert "meta-trained on, or chosen by, the family and data of 1 of 2 tasks (two)" in found[0]
    assert found[1].startswith("<ours> fails on 1 of 2 tasks")
    assert found[1].endswith("began: two (100% of runs).")
    assert "behind tuned adam on 1 of 2 tasks (two), ahead on 1 (one)" in found[2]
    assert "median ratio over tasks is 6.5" in found[2]
    assert "50% of runs get there" in found[4]
    text = (folder / "report.md").read_text()
    assert text.startswith("# <ours> beside tuned adam on 2 tasks of suite-1\n")
    assert text.index(found[0]) < text.index("| optimizer |")


def test_pages_link_to_each_other_and_to_nothing_else(folder):
    index = (folder / "report.html").read_text()
    assert Links(index).found == ["tasks/one.html", "tasks/two.html"]
    for link in Links(index).found:
        page = (folder / link).read_text()
        assert Links(page).found == ["../report.html"]
        assert "<svg" in page
    assert "&lt;ours&gt;" in index and "<ours>" not in index
    assert "l2o suite --optimizer ours" in index
    assert "prefers-color-scheme: dark" in index
    assert "(seen)" in index and "(untuned)" in index and "width x8" in index


def test_figures_are_there_as_png_and_pdf(folder):
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_a_report_is_made_again_byte_for_byte(folder, tmp_path):
    shutil.copy(folder / "suite.json", tmp_path)
    for name, path in render_suite_report(tmp_path).items():
        assert path.read_bytes() == (folder / name).read_bytes(), name


def test_a_folder_without_a_report_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"`run` must be a folder with a suite\.json; got"):
        read_suite_report(tmp_path)
    (tmp_path / "suite.json").write_text(json.dumps({"suite": "suite-1"}))
    with pytest.raises(ValueError, match="without aggregates, entrants, reference, rows"):
        read_suite_report(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_report_and_sorts_its_tables(folder, tmp_path, scheme):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking")
    for flag in (*flags, "no-first-run", f"user-data-dir={tmp_path}", "window-size=1200,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        value = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", value)
        browser.get((folder / "report.html").as_uri())
        assert browser.title == "<ours> beside tuned adam on 2 tasks of suite-1"
        assert browser.get_log("browser") == []
        run = browser.execute_script
        assert run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert run(
            "return [...document.querySelectorAll('figure svg')]"
            ".every(svg => svg.getBoundingClientRect().height > 100)"
        )
        ink, paper = run(
            "const style = getComputedStyle(document.body), root = document.documentElement;"
            "const canvas = document.createElement('div'); canvas.style.background = 'Canvas';"
            "document.body.append(canvas);"
            "return [style.color, getComputedStyle(canvas).backgroundColor]"
        )
        brightness = [sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3])) for c in (ink, paper)]
        assert (brightness[0] > brightness[1]) == (scheme == "dark")
        column = (
            "const table = document.querySelectorAll('table')[1];"
            "const head = [...table.querySelectorAll('th')]"
            ".find(th => th.textContent === 'training loss');"
            "head.click();"
            "return [...table.querySelectorAll('tr')].slice(1)"
            ".map(row => parseFloat(row.cells[head.cellIndex].textContent))"
        )
        assert run(column) == [2.0, 4.0, 4.0, 50.0]
        assert run(column) == [50.0, 4.0, 4.0, 2.0]
        run("document.querySelector('a[href=\"tasks/one.html\"]').click()")
        assert browser.title.startswith("one: <ours> beside tuned adam")
        assert browser.get_log("browser") == []
