"""`l2o data`: data sets that do not come with the package."""

from collections.abc import Sequence

from rich.console import Console

from l2o import registry
from l2o.datasets.fetch import SOURCES, data_rows, fetch


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o data fetch NAME ...` and `l2o data list`."""
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
                console.print(
                    f"{row.name:16} {size:>6}  {row.licence:8} {where}",
                    markup=False,
                    soft_wrap=True,
                )
        case ["fetch", *names] if names:
            for name in names:
                if name not in SOURCES:
                    raise registry.unknown_name_error("data", name, SOURCES)
            for name in names:
                console.print(f"{name}: {fetch(name)}", soft_wrap=True, markup=False)
        case _:
            raise ValueError(
                f"`data` takes `list` or `fetch NAME ...`; got {' '.join(arguments) or 'nothing'}. "
                "Try l2o data list."
            )
    return 0
