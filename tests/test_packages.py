"""What `pip install` installs is what the checkout holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: ROOT / name.replace(".", "/") for name in setuptools["packages"]}
    folders |= {name: ROOT / folder for name, folder in setuptools["package-dir"].items()}
    found = {init.parent for top in ("l2o", "tasks") for init in (ROOT / top).rglob("__init__.py")}
    found = {folder for folder in found if "l2o/tasks" not in folder.as_posix()}
    assert set(folders.values()) == found
