"""Reading and writing files of images, small ones that the tests write."""

import gzip

import pytest
from small_images import same, small_images

from l2o.datasets.idx import FILES, read_images
from l2o.tasks import mnist


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
