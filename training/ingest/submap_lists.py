"""PointNetVLAD's pickles: which submaps of which run belong to its training, its databases or its queries.

A pickle can run code when it is read. These hold dicts, lists, strings and numbers only, so nothing else is allowed: a
file that names any other class is refused before anything of it is made.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vpr_kd_ros.errors import DataError

NUMBERS = {
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}
"""What pandas' numbers are pickled as; module and name."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMBERS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, and only plain values and numbers are read")


@dataclass(frozen=True)
class ListedSubmaps:
    """The submaps of a run: the name of their folder, and microseconds, as their files are named."""

    folder: str
    stamps: frozenset[int]


def submaps_of(path: Path, run: str) -> ListedSubmaps:
    """The submaps of a run that a pickle lists.

    Args:
        path: ``oxford_evaluation_database.pickle``, ``oxford_evaluation_query.pickle`` (a list with a dict for each
            run) or ``training_queries_baseline.pickle`` (one dict): number to an entry whose ``query`` is
            ``.../RUN/FOLDER/MICROSECONDS.bin``.
        run: name of the run's folder.

    Raises:
        DataError: not such a file, it holds something other than plain values, or it lists no submap of the run, or
            such of several folders.
    """
    try:
        with path.open("rb") as stream:
            whole = _PlainUnpickler(stream).load()
    except Exception as error:  # what a damaged pickle raises is anything
        raise DataError(f"{path}: not a readable pickle of PointNetVLAD: {error}") from error
    tables = whole if isinstance(whole, list) else [whole]
    files = [PurePosixPath(name) for table in tables for name in _names(path, table)]
    found = [file for file in files if run in file.parts and file.stem.isdigit()]
    if not found:
        raise DataError(f"{path}: lists {len(files)} submaps, none of the run {run}")
    folders = sorted({file.parent.name for file in found})
    if len(folders) > 1:
        raise DataError(f"{path}: lists submaps of {run} in {' and '.join(folders)}; wants those of one folder")
    return ListedSubmaps(folders[0], frozenset(int(file.stem) for file in found))


def _names(path: Path, table: Any) -> Iterable[str]:
    for entry in table.values() if isinstance(table, Mapping) else [None]:
        name = entry.get("query") if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            raise DataError(f"{path}: wants entries with the submap's file as query, found {str(entry)[:80]}")
        yield name
