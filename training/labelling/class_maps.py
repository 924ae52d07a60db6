"""From the classes of a segmentation data set to the six of ``training.sessions.CLASSES``.

The maps that come with the project are the CSV files beside this module: one row ``id,name,class`` for each class in
the order of a network's outputs. The paper names its six clusters but not their members; what grows is vegetation,
grass and terrain too, what can be driven or swum on is ground, what is built is buildings, what moves or is carried
along is dynamic, and mountains, street furniture and the inside of rooms are other.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.sessions import CLASSES
from vpr_kd_ros.errors import ConfigError, DataError, did_you_mean

FOLDER = Path(__file__).parent
COLUMNS = ["id", "name", "class"]


@dataclass(frozen=True)
class ClassMap:
    """Which of the six classes each class of a data set is.

    Attributes:
        name: of the data set, or the path of the user's own map.
        names: of its K classes, by their number.
        targets: (K,) uint8, indices into ``CLASSES``.
    """

    name: str
    names: tuple[str, ...]
    targets: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)


def known_class_maps() -> list[str]:
    """The names of the maps that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def load_class_map(name: str) -> ClassMap:
    """Read a map of this project by its name, or one of the user's own by the path of its CSV file.

    Raises:
        ConfigError: there is no such map.
        DataError: the file is no map: a column, a class or a number is missing, twice or unknown.
    """
    known = known_class_maps()
    path = FOLDER / f"{name}.csv" if name in known else Path(name).expanduser()
    if path.suffix != ".csv":
        raise ConfigError(
            f"no class map {name!r}{did_you_mean(name, known)}; there is {', '.join(known)}, or give the path of your "
            f"own .csv with the columns {','.join(COLUMNS)}"
        )
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames != COLUMNS:
                raise DataError(f"{path}: the first line wants to be {','.join(COLUMNS)}")
            entries = list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable class map: {error}") from error
    for number, row in enumerate(entries):
        if row["id"] != str(number):
            raise DataError(f"{path}, line {number + 2}: the id wants to be {number}, got {row['id']!r}")
        if row["class"] not in CLASSES:
            raise DataError(
                f"{path}, line {number + 2}: no class {row['class']!r}{did_you_mean(str(row['class']), CLASSES)}; "
                f"there is {', '.join(CLASSES)}"
            )
    if not entries:
        raise DataError(f"{path}: holds no class")
    targets = np.array([CLASSES.index(row["class"]) for row in entries], dtype=np.uint8)
    return ClassMap(name, tuple(row["name"] for row in entries), targets)
