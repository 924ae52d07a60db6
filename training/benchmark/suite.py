"""What a suite compares: networks, methods, tables. Read from YAML; a cell is one training with one seed."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from training.benchmark.costs import CostTable
from training.engine.config import TrainConfig, from_dict
from training.evaluation.results import Protocol
from training.simulation.dataset import SimulationConfig
from vpr_kd_ros.errors import ConfigError, DataError, did_you_mean

FOLDER = Path(__file__).resolve().parents[2] / "config" / "benchmark"
TEACHER, ALONE = "Teacher", "Student w/o distil."
"""The first two rows of every table."""


@dataclass(frozen=True)
class Column:
    """One pairing of a table.

    Attributes:
        teacher, student: names of networks.
        title: over the column; empty for the two names.
        options: of every method in this column, such as ``adaptor``.
        paper: row to the paper's (AR@1 %, AR@1) in percent, for orientation.
    """

    teacher: str
    student: str
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """What stands over the column."""
        return self.title or f"T: {self.teacher}, S: {self.student}"


@dataclass(frozen=True)
class Table:
    """A table: its columns and, beside teacher and plain student, its rows, which are names of methods."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Suite:
    """Everything that a suite's YAML says.

    Attributes:
        name: of the file.
        title, about: for people.
        simulation: the town that it runs on when no other sessions are given.
        seeds: of students; each row is trained with each of them.
        teacher_seed: of the teachers: one teacher teaches all, so that the spread is the students' own.
        protocol: of the test.
        training: keys of ``TrainConfig`` that all trainings share.
        networks: name to the keys of ``TrainConfig`` that differ for it.
        distillation: keys of ``TrainConfig`` that all distilled students have beside those of their network.
        methods: name to the keys of ``TrainConfig`` that differ for it; ``start`` is ``student`` here (the plain
            student of the same seed) or ``teacher``. A row without distillation or placing learns without the teacher.
        tables: by file name.
        costs: of which networks it is told what they cost, or None.
        query_batches: so many queries are described at once, in order and shuffled, against a database described 16
            at a time (SciceVPR's Fig. 2): shows which descriptors depend on their batch. None to leave it out.
    """

    name: str
    title: str
    about: str
    simulation: SimulationConfig
    seeds: tuple[int, ...]
    teacher_seed: int
    protocol: Protocol
    training: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    distillation: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    tables: dict[str, Table]
    costs: CostTable | None = None
    query_batches: tuple[int, ...] = ()

    def cell(self, table: Table, column: Column, row: str, seed: int) -> Cell:
        """The training that a row of a column wants with a seed."""
        if row == TEACHER:
            return self._alone(column.teacher, self.teacher_seed)
        if row == ALONE:
            return self._alone(column.student, seed)
        teacher = self._alone(column.teacher, self.teacher_seed)
        keys = merged(self.training, self.networks[column.student], self.distillation, self.methods[row])
        if column.options:
            keys = merged(keys, {"method": {"options": column.options}})
        starts = {"": "", "student": self._alone(column.student, seed).name, "teacher": teacher.name}
        start = keys.pop("start", "")
        if start not in starts:
            raise ConfigError(f"suite {self.name}: start {start!r} of {row}: wants student or teacher")
        variant = "".join(f" {key} {value}" for key, value in column.options.items())
        # Rows of other names but the same training, such as an ablation's, share the cell of the first.
        method = next(name for name, keys in self.methods.items() if keys == self.methods[row])
        name = f"{_slug(column.student + variant)}--{_slug(method)}"
        config = self._config(name, {**keys, "seed": seed})
        if config.method.name == "none" and config.placing.precision == 0:
            return Cell(f"alone/{name}/seed-{seed}", config, "", starts[start])
        return Cell(f"distilled/{_slug(column.teacher)}--{name}/seed-{seed}", config, teacher.name, starts[start])

    def cells(self, tables: Sequence[str] = ()) -> list[Cell]:
        """All trainings of the tables (all where none is named), each once, after those it learns from or starts as."""
        found: dict[str, Cell] = {}
        for table, column, row, seed in self._entries(tables):
            cell = self.cell(table, column, row, seed)
            found.setdefault(cell.name, cell)
        return sorted(found.values(), key=lambda cell: bool(cell.teacher or cell.start))

    def with_seeds(self, seeds: Sequence[int]) -> Suite:
        """The same with other seeds."""
        return replace(self, seeds=tuple(seeds))

    def _entries(self, tables: Sequence[str]) -> Iterator[tuple[Table, Column, str, int]]:
        for name in tables:
            if name not in self.tables:
                raise ConfigError(f"suite {self.name}: no table {name!r}{did_you_mean(name, self.tables)}")
        # Seed by seed, so that a suite which is stopped early has whole columns.
        for seed in self.seeds:
            for name, table in self.tables.items():
                for column in table.columns if not tables or name in tables else ():
                    for row in (TEACHER, ALONE, *table.rows):
                        yield table, column, row, seed

    def _alone(self, network: str, seed: int) -> Cell:
        name = _slug(network)
        keys = {**merged(self.training, self.networks[network]), "seed": seed}
        return Cell(f"alone/{name}/seed-{seed}", self._config(name, keys))

    def _config(self, name: str, keys: Mapping[str, Any]) -> TrainConfig:
        seed = keys.get("seed", 0)
        try:
            config = read_config({**keys, "seed": 0})
        except ConfigError as error:
            raise ConfigError(f"suite {self.name}, {name}: {error}") from error
        return replace(config, seed=seed)


@dataclass(frozen=True)
class Cell:
    """One training and its measurement.

    Attributes:
        name: its folder below the suite's ``cells``.
        config: of the training.
        teacher: the cell of the teacher; empty for a network that learns by itself.
        start: the cell whose weights it starts from; empty for its own beginning.
    """

    name: str
    config: TrainConfig
    teacher: str = ""
    start: str = ""


def load_suite(name: str) -> Suite:
    """A suite from ``config/benchmark``, or from the path of a YAML file.

    Raises:
        ConfigError: there is none, a key is unknown or missing, or a table names what is not defined.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        raise ConfigError(f"no suite {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")
    try:
        return _parsed(path.stem, _with_base(path))
    except (yaml.YAMLError, DataError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _with_base(path: Path) -> dict[str, Any]:
    """What a YAML file says, laid over the suite that it ``extends``."""
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    base = values.pop("extends", None)
    if base is None:
        return values
    own_tables = values.pop("tables", None)
    whole = merged(_with_base(path.with_name(f"{base}.yaml")), values)
    return whole if own_tables is None else {**whole, "tables": own_tables}


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over one another, inner mappings too; what comes later wins.

    A model or method of another name brings its own options: those of the one it replaces are dropped.
    """
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            known = result.get(key)
            if isinstance(value, Mapping) and isinstance(known, Mapping):
                renamed = "name" in value and value["name"] != known.get("name")
                result[key] = dict(value) if renamed else merged(known, value)
            else:
                result[key] = value
    return result


KEYS = (
    "title",
    "about",
    "simulation",
    "seeds",
    "protocol",
    "training",
    "networks",
    "distillation",
    "methods",
    "tables",
    "costs",
    "query_batches",
)


def _parsed(name: str, values: Mapping[str, Any]) -> Suite:
    if not values.get("seeds"):
        raise ConfigError("seeds: wants at least one")
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"unknown key {key!r}{did_you_mean(key, KEYS)}")
    tables = {
        key: Table(
            title=table["title"],
            columns=tuple(_column(column) for column in table["columns"]),
            rows=tuple(table["rows"]),
            note=table.get("note", ""),
        )
        for key, table in values["tables"].items()
    }
    suite = Suite(
        name=name,
        title=values["title"],
        about=values["about"],
        simulation=from_dict(SimulationConfig, values.get("simulation", {})),
        seeds=tuple(values["seeds"]),
        teacher_seed=values["seeds"][0],
        protocol=from_dict(Protocol, values.get("protocol", {})),
        training=dict(values.get("training", {})),
        networks=dict(values["networks"]),
        distillation=dict(values.get("distillation", {})),
        methods=dict(values["methods"]),
        tables=tables,
        costs=CostTable.of(values["costs"]) if "costs" in values else None,
        query_batches=tuple(values.get("query_batches", ())),
    )
    for key, table in tables.items():
        _require(f"table {key}: row", table.rows, suite.methods)
        for column in table.columns:
            _require(f"table {key}: network", (column.teacher, column.student), suite.networks)
            _require(f"table {key}: paper's row", column.paper, (TEACHER, ALONE, *table.rows))
    suite.cells()  # every configuration is read now, not after hours
    return suite


def _column(values: Mapping[str, Any]) -> Column:
    paper = {row: (float(figures[0]), float(figures[1])) for row, figures in values.get("paper", {}).items()}
    return Column(**{**values, "paper": paper})


def _require(what: str, names: Iterator[str] | Sequence[str] | Mapping[str, Any], known: Any) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} {name!r} is not defined{did_you_mean(name, list(known))}")


def read_config(keys: Mapping[str, Any]) -> TrainConfig:
    """A training's configuration from plain values; the same values are read once."""
    return _read(json.dumps(keys, sort_keys=True))


@functools.cache
def _read(keys: str) -> TrainConfig:
    """Reading takes tens of milliseconds, and a suite asks for the same again and again."""
    return from_dict(TrainConfig, json.loads(keys))


def _slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens: ``MinkLoc++3D`` is ``minkloc-3d``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
