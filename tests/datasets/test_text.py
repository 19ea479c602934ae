"""Text in a folder, out of packages that the tests write."""

import gzip
import json

import pytest
from small_packages import deliver

from l2o.datasets import fetch
from l2o.datasets.text import read_text

SPEECHES = {
    f"package/data/{year}_somebody_x.{ending}": b"said in %d" % year
    for year in (2021, 1790, 1981, 1982, 2001, 2002)
    for ending in ("txt", "json")
}

BOOK = {f"package/data/chapter_{n}.txt": b"chapter %d" % n for n in (10, 9, 8, 20, 1, 11)} | {
    "package/data/data.txt": b"all of it once more",
    "package/data/contents.txt": b"CONTENTS",
}


@pytest.mark.parametrize(
    ("name", "package", "expected"),
    [
        (
            "state_of_the_union",
            SPEECHES,
            {
                "train": b"said in 1790\nsaid in 1981",
                "valid": b"said in 1982\nsaid in 2001",
                "test": b"said in 2002\nsaid in 2021",
            },
        ),
        (
            "moby_dick",
            BOOK,
            {
                "train": b"chapter 1\nchapter 8\nchapter 11",
                "valid": b"chapter 9",
                "test": b"chapter 10\nchapter 20",
            },
        ),
    ],
)
def test_each_speech_or_chapter_is_in_one_split(name, package, expected, cache, monkeypatch):
    calls = deliver(monkeypatch, name, package)
    folder = fetch.fetch(name)
    assert {split: text.tobytes() for split, text in read_text(folder).items()} == expected
    about = json.loads((folder / "SOURCE.json").read_text())
    assert about["licence"].startswith("PDDL") and about["source"].startswith("npm @stdlib/")
    assert about["sha256_of_package"] == fetch.SOURCES[name].sha256
    assert [path.name for path in cache.iterdir()] == [name]
    fetch.fetch(name)
    assert len(calls) == 1
    (folder / "valid.txt").write_bytes(b"cut")
    fetch.fetch(name)
    assert len(calls) == 2 and read_text(folder)["valid"].tobytes() == expected["valid"]


@pytest.fixture
def book(cache, monkeypatch):
    deliver(monkeypatch, "moby_dick", BOOK)
    return fetch.fetch("moby_dick")


def cut_gzip(folder):
    content = gzip.compress((folder / "test.txt").read_bytes())
    (folder / "test.txt").unlink()
    (folder / "test.txt.gz").write_bytes(content[:-9])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "valid.txt").unlink(), "must hold valid.txt or valid.txt.gz; got neither."),
        (lambda f: (f / "valid.txt").write_bytes(b"chap"), "a whole valid.txt, as SOURCE.json has"),
        (lambda f: (f / "train.txt").write_bytes(b""), "a whole train.txt, as SOURCE.json has it"),
        (lambda f: (f / "SOURCE.json").write_bytes(b"{"), "a whole train.txt; got a broken one"),
        (cut_gzip, "a whole test.txt.gz; got a broken one"),
    ],
)
def test_bad_files(book, spoil, said):
    spoil(book)
    with pytest.raises(ValueError) as caught:
        read_text(book)
    message = str(caught.value)
    assert said in message and message.startswith(f"`folder` {book} must hold")
    assert message.endswith("Try `l2o data fetch moby_dick`.") and "\n" not in message


def test_a_folder_made_by_hand_is_read(tmp_path):
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_bytes(name.encode())
    (tmp_path / "test.txt.gz").write_bytes(gzip.compress(b"test"))
    assert {split: text.tobytes().decode() for split, text in read_text(tmp_path).items()} == {
        split: split for split in ("train", "valid", "test")
    }
