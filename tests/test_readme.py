"""The README's Python is run as it stands, but for the number of outer steps."""

import re
from pathlib import Path

import pytest

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
