"""A region's buildings, gardens, trees and street furniture, made up from a seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.simulation.look_alike import BLOCK_M, LookAlike, Plot, choose_look_alikes, copy_metres, copy_plots
from training.simulation.mesh import BALL, BOX, PRISM, Kind, Mesh, MeshBuilder, Surfaces, Windows
from training.simulation.noise import generator
from training.simulation.road import Road
from vpr_kd_ros.errors import ConfigError

F32 = NDArray[np.float32]

ROAD_HALF_M = 5.5
PAVEMENT_EDGE_M = 7.6
SIDE_STREET_HALF_M = 3.6


@dataclass(frozen=True)
class TownConfig:
    """The geometry of a region.

    Attributes:
        loop_length_m: length of the street, metres.
        zone_length_m: mean length of a stretch of one character (dense, houses, park), metres.
        tree_density: factor on the number of trees.
        look_alike: share of the street, 0 to 0.5, whose buildings are near-copies of another stretch's.
    """

    loop_length_m: float = 800.0
    zone_length_m: float = 90.0
    tree_density: float = 1.0
    look_alike: float = 0.0

    def __post_init__(self) -> None:
        if not 100.0 <= self.loop_length_m <= 5000.0:
            raise ConfigError(f"town: loop_length_m is {self.loop_length_m:g}, wants 100 to 5000 metres")
        if not 20.0 <= self.zone_length_m <= self.loop_length_m:
            raise ConfigError(
                f"town: zone_length_m is {self.zone_length_m:g}, wants 20 to loop_length_m ({self.loop_length_m:g})"
            )
        if not 0.0 <= self.tree_density <= 5.0:
            raise ConfigError(f"town: tree_density is {self.tree_density:g}, wants 0 to 5")
        if not 0.0 <= self.look_alike <= 0.5:
            raise ConfigError(f"town: look_alike is {self.look_alike:g}, wants 0 to 0.5: the rest is what is copied")
        if self.look_alike > 0 and self.loop_length_m < 2 * BLOCK_M:
            raise ConfigError(f"town: look_alike wants loop_length_m of at least {2 * BLOCK_M:g} metres")


@dataclass(frozen=True)
class Zone:
    """The character of a stretch of the street; pairs are ranges that values are drawn from, metres unless said.

    ``built`` is the share of plots with a building, ``trees_per_100m`` counts both sides, ``fence`` the share of
    plots with a hedge or a wall towards the street, ``parked`` the share of kerb places that are taken, ``lawn``
    whether the ground is grass (1) or paved (0), ``weight`` how common the zone is.
    """

    name: str
    setback: tuple[float, float]
    width: tuple[float, float]
    gap: tuple[float, float]
    storeys: tuple[int, int]
    built: float
    gable: float
    second_row: float
    trees_per_100m: float
    fence: float
    parked: float
    lawn: float
    weight: float


ZONES = (
    Zone("dense", (7.8, 9.6), (8, 18), (0, 4), (3, 6), 0.95, 0.15, 0.8, 3, 0.0, 0.5, 0.0, 0.5),
    Zone("houses", (9.5, 16), (8, 13), (2, 9), (2, 4), 0.93, 0.75, 0.6, 9, 0.6, 0.3, 1.0, 0.35),
    Zone("park", (13, 24), (9, 20), (6, 20), (2, 4), 0.4, 0.4, 0.8, 24, 0.4, 0.2, 1.0, 0.15),
)

WALLS = np.array(
    [
        (0.72, 0.36, 0.28),
        (0.83, 0.77, 0.66),
        (0.90, 0.88, 0.84),
        (0.62, 0.60, 0.58),
        (0.85, 0.70, 0.42),
        (0.55, 0.33, 0.24),
        (0.66, 0.73, 0.78),
        (0.78, 0.58, 0.48),
        (0.46, 0.48, 0.52),
        (0.70, 0.76, 0.62),
    ]
)
ROOFS = np.array([(0.45, 0.22, 0.17), (0.30, 0.29, 0.30), (0.52, 0.32, 0.24), (0.38, 0.38, 0.42)])
SIGNS = np.array([(0.8, 0.1, 0.1), (0.1, 0.25, 0.7), (0.95, 0.8, 0.1), (0.9, 0.9, 0.9), (0.1, 0.5, 0.25)])


@dataclass(frozen=True)
class Town:
    """A region: its street, its mesh, and what the ground and the lamps need.

    Attributes:
        road: the loop.
        mesh, surfaces: everything that does not move.
        lamps: (L, 3) float32, street lamps, metres.
        zone_of_metre: (ceil(length),) int, index into ``ZONES`` for each metre of the street.
        crossings: (K,) float32, s of zebra crossings, metres.
        side_streets: (J, 2) float32, s and side (+1 left) of streets that branch off.
        look_alikes: stretches that are near-copies of others.
    """

    road: Road
    mesh: Mesh
    surfaces: Surfaces
    lamps: F32
    zone_of_metre: NDArray[np.int32]
    crossings: F32
    side_streets: F32
    look_alikes: tuple[LookAlike, ...] = ()


@functools.lru_cache(maxsize=3)
def build_town(config: TownConfig, seed: int, region: str) -> Town:
    """The region named ``region``; the same for the same arguments."""
    return _Planner(config, generator(seed, "town", region), generator(seed, "look-alike", region)).plan()


@dataclass
class _Planner:
    config: TownConfig
    rng: np.random.Generator
    copying: np.random.Generator
    builder: MeshBuilder = field(default_factory=MeshBuilder)
    plots: list[Plot] = field(default_factory=list)
    lamps: list[tuple[float, float, float]] = field(default_factory=list)

    def plan(self) -> Town:
        self.road = Road(self.rng, self.config.loop_length_m)
        self.zones = self._zones()
        length = self.config.loop_length_m
        count = max(1, int(length / 110))
        self.crossings = np.sort(self.rng.uniform(0, length, count))
        self.side_streets = np.stack(
            [np.sort(self.rng.uniform(0, length, count)), self.rng.choice([-1.0, 1.0], count)], axis=1
        )
        self._ground()
        for side in (-1.0, 1.0):
            self._buildings(side)
        # A generator of its own decides on copies: without them the region is what it always was.
        look_alikes = choose_look_alikes(self.copying, length, self.config.look_alike)
        self._copy(look_alikes)
        self._trees()
        self._furniture()
        mesh, surfaces = self.builder.build()
        return Town(
            self.road,
            mesh,
            surfaces,
            np.array(self.lamps, dtype=np.float32).reshape(-1, 3),
            self.zones,
            self.crossings.astype(np.float32),
            self.side_streets.astype(np.float32),
            look_alikes,
        )

    def _copy(self, look_alikes: tuple[LookAlike, ...]) -> None:
        for pair in look_alikes:
            self.zones = copy_metres(self.zones, pair)
            s = self.side_streets[:, 0]
            branch_off = self.side_streets[pair.in_original(s)] + [pair.shift_m, 0.0]
            self.side_streets = np.concatenate([self.side_streets[~pair.in_copy(s)], branch_off])
        copy_plots(self.builder, self.road, self.plots, look_alikes, self.copying, WALLS)

    def _zones(self) -> NDArray[np.int32]:
        metres = np.zeros(int(np.ceil(self.config.loop_length_m)), dtype=np.int32)
        start, last = 0, -1
        weights = np.array([zone.weight for zone in ZONES])
        while start < len(metres):
            share = weights[last] if last >= 0 else 0.0
            kind = int(self.rng.choice(len(ZONES), p=weights * (np.arange(len(ZONES)) != last) / (1 - share)))
            stop = start + int(self.config.zone_length_m * self.rng.uniform(0.6, 1.4))
            metres[start:stop] = kind
            start, last = stop, kind
        return metres

    def _zone(self, s: float) -> Zone:
        return ZONES[self.zones[int(s % self.config.loop_length_m) % len(self.zones)]]

    def _range(self, bounds: tuple[float, float]) -> float:
        return float(self.rng.uniform(*bounds))

    def _place(self, s: float, d: float, z: float = 0.0) -> tuple[tuple[float, float, float], float]:
        xy, yaw = self.road.at(s, d)
        return (float(xy[0]), float(xy[1]), z), float(yaw)

    def _shade(self, palette: Any, spread: float = 0.06) -> Any:
        return palette[self.rng.integers(len(palette))] + self.rng.normal(0, spread, 3)

    def _ground(self) -> None:
        low, high = self.road.extent
        size = high - low + 600.0
        centre = (*(low + high) / 2, -1.0)
        surface = self.builder.surface(Kind.GROUND, "ground", (0.5, 0.5, 0.5))
        self.builder.add(BOX, surface, centre, (*size, 1.0))

    def _on_side_street(self, s: float, half: float, side: float) -> bool:
        gap = np.abs(
            (self.side_streets[:, 0] - s + self.road.length_m / 2) % self.road.length_m - self.road.length_m / 2
        )
        return bool(np.any((gap < half + SIDE_STREET_HALF_M + 1.0) & (self.side_streets[:, 1] == side)))

    def _buildings(self, side: float) -> None:
        s = self._range((0, 10))
        while s < self.road.length_m - 6.0:
            zone = self._zone(s)
            width = self._range(zone.width)
            middle = s + width / 2
            s += width + self._range(zone.gap)
            if self._on_side_street(middle, width / 2, side):
                continue
            first = len(self.builder.parts)
            setback = self._range(zone.setback)
            depth = self._range((8, 14))
            if self.rng.random() < zone.built:
                self._building(zone, middle, side * (setback + depth / 2), width, depth)
            if self.rng.random() < zone.fence:
                self._fence(middle, side * self._range((PAVEMENT_EDGE_M + 0.2, PAVEMENT_EDGE_M + 1.2)), width)
            if self.rng.random() < zone.second_row:
                behind = setback + depth + self._range((8, 26))
                self._building(zone, middle + self._range((-4, 4)), side * behind, self._range((10, 22)), 11.0, 1)
            self.plots.append(Plot(middle, first, len(self.builder.parts)))

    def _building(self, zone: Zone, s: float, d: float, width: float, depth: float, extra_storeys: int = 0) -> None:
        rng = self.rng
        centre, yaw = self._place(s, d)
        yaw += rng.normal(0, 0.03)
        axis = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        corners = np.array([(-1, -1), (0, -1), (1, -1), (-1, 1), (0, 1), (1, 1)]) * [width / 2, depth / 2] @ axis
        if self.road.clearance(corners + centre[:2]) < PAVEMENT_EDGE_M:
            return
        storey = self._range((2.7, 3.7))
        height = (int(rng.integers(zone.storeys[0], zone.storeys[1] + 1)) + extra_storeys) * storey + self._range(
            (0.3, 1)
        )
        wall = self._shade(WALLS)
        shop = zone.name == "dense" and rng.random() < 0.55
        windows = Windows(
            spacing_m=self._range((1.7, 4.2)),
            storey_m=storey,
            width=self._range((0.3, 0.72)),
            height=self._range((0.38, 0.66)),
            shop=float(shop),
            roughness=self._range((0.04, 0.22)),
            tone=self._range((0.05, 0.16)),
        )
        facade = self.builder.surface(Kind.FACADE, "buildings", wall, windows)
        roof = self.builder.surface(Kind.PLAIN, "buildings", self._shade(ROOFS))
        self.builder.add(BOX, facade, centre, (width, depth, height), yaw)
        top = (centre[0], centre[1], height)
        if rng.random() < zone.gable:
            if width >= depth:
                shape, turn = (width + 0.7, depth + 0.9, self._range((2.2, 4.5))), yaw
            else:
                shape, turn = (depth + 0.7, width + 0.9, self._range((2.2, 4.5))), yaw + np.pi / 2
            self.builder.add(PRISM, roof, top, shape, turn)
        else:
            self.builder.add(BOX, roof, (*top[:2], height - 0.05), (width + 0.4, depth + 0.4, 0.45), yaw)
            for _ in range(rng.integers(0, 3)):
                shift = np.array([self._range((-0.3, 0.3)) * width, self._range((-0.3, 0.3)) * depth]) @ axis
                size = (self._range((1.5, 4)), self._range((1.5, 4)), self._range((1, 3)))
                self.builder.add(BOX, roof, (*(top[:2] + shift), height + 0.3), size, yaw)
        if rng.random() < 0.35:
            # A bay or a balcony block that stands out of the wall: what tells two alike facades apart.
            block = self.builder.surface(Kind.FACADE, "buildings", wall * self._range((0.7, 1.15)), windows)
            inwards = -1.0 if d > 0 else 1.0
            shift = np.array([self._range((-0.3, 0.3)) * width, inwards * depth / 2]) @ axis
            size = (self._range((2, 4)), self._range((1.0, 1.9)), height * self._range((0.4, 1.0)))
            self.builder.add(BOX, block, (centre[0] + shift[0], centre[1] + shift[1], 0), size, yaw)

    def _fence(self, s: float, d: float, width: float) -> None:
        hedge = self.rng.random() < 0.6
        if hedge:
            green = (0.16, 0.33, 0.13) + self.rng.normal(0, 0.04, 3)
            surface = self.builder.surface(Kind.PLAIN, "vegetation", green)
        else:
            surface = self.builder.surface(Kind.PLAIN, "other", self._shade(WALLS) * 0.85)
        centre, yaw = self._place(s, d)
        size = (width * self._range((0.6, 0.95)), 0.8 if hedge else 0.3, self._range((0.8, 2.0)))
        self.builder.add(BOX, surface, centre, size, yaw)

    def _trees(self) -> None:
        for start in range(0, int(self.road.length_m), 20):
            zone = self._zone(start)
            count = self.rng.poisson(zone.trees_per_100m / 5 * self.config.tree_density)
            for _ in range(count):
                side = self.rng.choice([-1.0, 1.0])
                s = start + self._range((0, 20))
                near = zone.name == "dense" or self.rng.random() < 0.3
                d = side * (self._range((6.6, 7.6)) if near else self._range((9.5, 34)))
                if not self._on_side_street(s, 1.0, side):
                    self._tree(s, d)

    def _tree(self, s: float, d: float) -> None:
        centre, yaw = self._place(s, d)
        if self.road.clearance(np.array([centre[:2]])) < 6.4:
            return
        height = self._range((2.6, 4.5))
        radius = self._range((1.2, 2.6))
        trunk = self.builder.surface(Kind.PLAIN, "vegetation", np.array([0.30, 0.23, 0.17]) * self._range((0.7, 1.2)))
        thick = self._range((0.2, 0.45))
        self.builder.add(BOX, trunk, centre, (thick, thick, height), yaw)
        green = np.array([0.27, 0.37, 0.19]) * self._range((0.75, 1.2)) + self.rng.normal(0, 0.02, 3)
        crown = self.builder.surface(Kind.CROWN, "vegetation", green)
        if self.rng.random() < 0.2:
            # A conifer or poplar: one tall crown from near the ground.
            tall = self._range((2.5, 4.5))
            self.builder.add(BALL, crown, (*centre[:2], 1.2 + tall), (radius * 0.7, radius * 0.7, tall), yaw)
            return
        for _ in range(3):
            shift = self.rng.normal(0, 0.4 * radius, 3)
            size = radius * self.rng.uniform(0.65, 1.0, 3)
            self.builder.add(BALL, crown, np.add((*centre[:2], height + 0.5 * radius), shift), size, yaw)

    def _furniture(self) -> None:
        builder = self.builder
        steel = builder.surface(Kind.PLAIN, "other", (0.42, 0.43, 0.45))
        bulb = builder.surface(Kind.STREETLAMP, "other", (0.95, 0.93, 0.85))
        spacing = self._range((24, 32))
        for number in range(int(self.road.length_m / spacing)):
            side = 1.0 if number % 2 else -1.0
            s = number * spacing + self._range((-3, 3))
            centre, yaw = self._place(s, side * 6.1)
            builder.add(BOX, steel, centre, (0.16, 0.16, 6.0), yaw)
            arm, _ = self._place(s, side * 5.3, 5.9)
            builder.add(BOX, steel, arm, (0.12, 1.8, 0.1), yaw)
            head, _ = self._place(s, side * 4.6, 5.75)
            builder.add(BOX, bulb, head, (0.35, 0.6, 0.16), yaw)
            self.lamps.append(head)
        for _ in range(int(self.road.length_m / 28)):
            side = self.rng.choice([-1.0, 1.0])
            centre, yaw = self._place(self._range((0, self.road.length_m)), side * self._range((6.2, 7.8)))
            paint = builder.surface(Kind.PLAIN, "other", self._shade(SIGNS, 0.03))
            draw = self.rng.random()
            if draw < 0.55:
                high = self._range((2.1, 2.8))
                builder.add(BOX, steel, centre, (0.08, 0.08, high), yaw)
                side_m = self._range((0.5, 0.9))
                builder.add(BOX, paint, (*centre[:2], high - 0.2), (0.06, side_m, side_m), yaw)
            elif draw < 0.75:
                builder.add(BOX, paint, centre, (1.6, 0.5, self._range((0.9, 1.6))), yaw)
            elif draw < 0.9:
                builder.add(BOX, paint, centre, (0.7, 0.25, 1.6), yaw)
            else:
                # A shelter or an advertising pillar.
                builder.add(BOX, paint, centre, (self._range((1.2, 3.5)), 1.2, 2.6), yaw)
