"""The README's Python is run as it stands, but for the number of outer steps."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from l2o.cli import meta_train as meta_training
from l2o.cli.main import main
from l2o.cli.settings import Processes

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_readme_has_its_examples():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_a_block_of_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(BLOCKS[block].replace("num_steps=200)\n", "num_steps=10)\n"), names)
    if "loss" in names:  # the ready optimizer has trained something
        assert names["loss"] < 0.2
    else:
        assert (tmp_path / "mine.safetensors").stat().st_size > 0


def test_the_recipes_run():
    """Blocks of docs/loops.md go on where those before them ended."""
    page = (README.parent / "docs" / "loops.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 5 and set(names["found"]) == {"step_size", "relative_update", "cosine"}


def commands() -> list[str]:
    """Every meta-training that README and docs tell to type, but for placeholders and shells."""
    pages = [README, *sorted((README.parent / "docs").glob("*.md"))]
    found = re.findall(
        r"^(?:l2o meta-train|python meta_train\.py) ([^#\n]+)",
        "\n".join(page.read_text() for page in pages),
        flags=re.MULTILINE,
    )
    left_out = ("my_module", "$", "--distributed", "--log ", "--init-from runs/first")
    return sorted({line.strip() for line in found if not any(x in line for x in left_out)})


def test_there_are_commands():
    assert len(commands()) > 8


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documentation_is_accepted(line, monkeypatch, capsys):
    """All parts of the run are built; it is not begun."""

    def only_resolve(settings, console):
        del console
        replace(settings, processes=Processes(devices=1)).build()
        return 0

    monkeypatch.setattr(meta_training, "meta_train", only_resolve)
    assert main(["meta-train", *shlex.split(line)]) == 0, capsys.readouterr().err
