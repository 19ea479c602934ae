"""`l2o data`: data sets that do not come with the package."""

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from l2o import registry
from l2o.datasets.fetch import SOURCES, data_rows, fetch
from l2o.datasets.python_source import python_source, python_source_sha256, source_folder

PYTHON = "python_source"
"""What needs no download: the source of Python's standard library."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o data fetch NAME ...` and `l2o data list`."""
    show = partial(console.print, soft_wrap=True, markup=False)
    match list(arguments):
        case ["-h" | "--help", *_] | [_, "-h" | "--help", *_]:
            console.print(
                "usage: l2o data list\n       l2o data fetch NAME ...",
                markup=False,
                highlight=False,
            )
        case ["list"]:
            for row in data_rows():
                where = row.folder if row.is_present else f"not fetched ({row.source})"
                size = f"{row.download_bytes / 1e6:.0f} MB"
                show(f"{row.name:18} {size:>6}  {where}  [{row.licence}]")
            size = sum(map(len, python_source().values()))
            show(
                f"{PYTHON:18} {'none':>6}  {source_folder()}, {size:,} bytes with sha256 "
                f"{python_source_sha256()}  [PSF-2.0]"
            )
        case ["fetch", *names] if names:
            known = (*SOURCES, PYTHON)
            for name in names:
                if name not in known:
                    raise registry.unknown_name_error("data", name, known)
            for name in names:
                show(f"{name}: {source_folder() if name == PYTHON else fetch(name)}")
        case _:
            raise ValueError(
                f"`data` takes `list` or `fetch NAME ...`; got {' '.join(arguments) or 'nothing'}. "
                "Try l2o data list."
            )
    return 0
