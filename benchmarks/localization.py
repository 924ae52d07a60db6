"""How far the localizer can be trusted: simulated drives that no student was trained or calibrated on.

``python benchmarks/localization.py out/demo/student.pt2``: in each region, a drive in the sun makes the map, and
another drive under each condition is localised in it: single frames, and the belief over time with drifting odometry
and without. The same drives are also localised in the map of another region (nothing but "unknown" is right there), in
a map that lacks half of the street (they leave it and come back), and with the robot carried away in the middle. Give
several artefacts, of students trained with several seeds, for a mean and a standard deviation. ``--cache FOLDER`` keeps
the rendered frames. About ten minutes on one core for one student and two regions, most of them rendering.

``--rear`` gives the robot a second camera that looks back, with a map of its own, and measures the belief of both.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

# Run as a file, the checkout is not on the path, and `training` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import Row, markdown, parser, write_report
from training.simulation.conditions import CONDITIONS
from training.simulation.noise import generator
from training.simulation.odometry import Odometer
from training.simulation.schedule import NS_PER_S, RobotConfig
from vpr_kd_ros.calibration import ELLIPSE_95
from vpr_kd_ros.geometry import Floats, Ints, Pose
from vpr_kd_ros.localizer import Localizer, LocalizerConfig
from vpr_kd_ros.mapper import Mapper, MapperConfig
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student

MAPPED, MAP_DRIVE, QUERY_DRIVE = "sun", 1, 2
RIGHT_M = 10.0
"""A pose this near the truth is right."""
MAPPED_M = 12.0
"""The robot is on the map this near one of its keyframes."""
GONE_FROM, GONE_TO = 0.3, 0.75
"""The part of the street that the shortened map lacks."""
CARRIED_FROM, CARRIED_TO = 0.3, 0.8
"""Where on the street the robot is picked up and put down."""
MODES = ("single", "belief", "belief without odometry")
TWO_CAMERAS = "belief, two cameras"
FOLLOWING = ("belief", TWO_CAMERAS)
"""Modes that can find a robot again that was carried away."""
FRONT, REAR = "front", "rear"


@dataclass(frozen=True)
class Drive:
    """Frames of one drive: descriptors (F, D) float32 of each camera, true poses, stamps (F,) int64."""

    descriptors: dict[str, NDArray[np.float32]]
    poses: list[Pose]
    stamps_ns: Ints


@dataclass(frozen=True)
class Answers:
    """What the localizer said of each frame, all (F,).

    Attributes:
        accepted: whether a pose was announced, at the default threshold.
        right: whether the pose is near the truth, announced or not.
        probabilities: of the best place; 0 where there was none.
        inside: whether the truth lies in the pose's 95 % ellipse.
        on_map: whether the robot was on the map.
    """

    accepted: NDArray[np.bool_]
    right: NDArray[np.bool_]
    probabilities: Floats
    inside: NDArray[np.bool_]
    on_map: NDArray[np.bool_]


class Recalled(Student):
    """A student that was asked before."""

    def __init__(self, student: Student) -> None:
        self.metadata = student.metadata
        self.answer: NDArray[np.float32] = np.empty(0, dtype=np.float32)

    def describe(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The answer that was put in, for one image."""
        return self.answer[None]


def frames(
    region: str, condition: str, number: int, seed: int, cache: Path | None, camera: str = FRONT
) -> tuple[NDArray[np.uint8], Floats, Ints]:
    """Images (F, H, W, 3), poses (F, 7) and stamps (F,) of a drive, rendered or from the cache."""
    ending = "_rear" if camera == REAR else ""
    path = None if cache is None else cache / f"{seed}_{region}_{condition}_{number}{ending}.npz"
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return kept["images"], kept["poses"], kept["stamps"]
    config = RobotConfig(region=region, condition=condition, number=number, seed=seed)
    traverse = config.traverse()
    elapsed = np.arange(0, config.duration_ns + 1, round(NS_PER_S / config.camera_hz))
    travelled = [config.travelled_m(int(t)) for t in elapsed]
    bar = tqdm(travelled, f"{region} {condition}", leave=False)
    images = np.array([traverse.photograph(s, rear=camera == REAR)[0] for s in bar])
    poses = np.array([[*pose.position, *pose.quaternion] for pose in map(traverse.pose, travelled)])
    stamps = traverse.first_stamp_ns + elapsed.astype(np.int64)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images, poses=poses, stamps=stamps)
    return images, poses, stamps


def described(student: Student, seen: dict[str, tuple[NDArray[np.uint8], Floats, Ints]]) -> Drive:
    """A drive as the student sees it."""
    descriptors = {camera: student.describe(list(images)) for camera, (images, _, _) in seen.items()}
    _, poses, stamps = seen[FRONT]
    return Drive(descriptors, [Pose(row[:3], row[3:]) for row in poses], stamps)


Maps = dict[str, PlaceMap]


def mapped(student: Student, drive: Drive, spacing_m: float, kept: Callable[[float], bool]) -> Maps:
    """The maps that the mapper makes of the part of a drive, 0 to 1, that is ``kept``, one for each camera."""
    return {camera: _mapped(student, drive, camera, spacing_m, kept) for camera in drive.descriptors}


def _mapped(student: Student, drive: Drive, camera: str, spacing_m: float, kept: Callable[[float], bool]) -> PlaceMap:
    recalled = Recalled(student)
    place_map = PlaceMap(student.metadata.descriptor_dim, student.metadata.fingerprint, "map")
    mapper = Mapper(recalled, place_map, MapperConfig(min_distance_m=spacing_m))
    picture = np.zeros((1, 1, 3), dtype=np.uint8)
    for i, pose in enumerate(drive.poses):
        if kept(i / len(drive.poses)):
            recalled.answer = drive.descriptors[camera][i]
            mapper.observe(picture, pose, int(drive.stamps_ns[i]))
    return place_map


def odometry(poses: Sequence[Pose], order: Sequence[int], rng: np.random.Generator) -> list[Pose]:
    """What the wheels told in this order of frames; a frame that does not follow was reached without wheels."""
    odometer = Odometer(rng)
    told: list[Pose] = []
    for before, now in zip([-1, *order], order, strict=False):
        if now != before + 1 and told:
            # Carried through the air: the next odometry starts from here, where it had stopped.
            odometer = _Carried(odometer)
        told.append(odometer.update(poses[now]))
    return told


class _Carried(Odometer):
    """Goes on from where another stopped, without the way in between."""

    def __init__(self, other: Odometer) -> None:
        self.__dict__.update(other.__dict__)
        self._last = None


def localise(
    student: Student, maps: Maps, drive: Drive, mode: str, rng: np.random.Generator, order: Sequence[int] = ()
) -> Answers:
    """Drive through a map, in this order of frames or from first to last, five frames a second."""
    order = order or range(len(drive.poses))
    cameras = list(maps) if mode == TWO_CAMERAS else [FRONT]
    positions = maps[FRONT].positions[:, :2]
    threshold = LocalizerConfig().min_probability
    # Everything is answered here, so that other thresholds can be told from the same drive.
    config = LocalizerConfig(mode="single" if mode == "single" else "belief", min_probability=1e-9)
    localizer = Localizer(student, {camera: maps[camera] for camera in cameras}, config)
    wheels = odometry(drive.poses, order, rng)
    rows = []
    for step, i in enumerate(order):
        truth = drive.poses[i].position[:2]
        # Time goes on evenly, whatever the order.
        stamp = int(drive.stamps_ns[step])
        told = wheels[step] if mode in FOLLOWING else None
        # What the last of the cameras is answered counts: it has all that the others said.
        match = [localizer.find(drive.descriptors[camera][i], stamp, told, camera) for camera in cameras][-1]
        right = inside = False
        if match.pose is not None and match.covariance is not None:
            gap = truth - match.pose.position[:2]
            right = float(np.linalg.norm(gap)) <= RIGHT_M
            inside = float(gap @ np.linalg.solve(match.covariance[:2, :2], gap)) <= ELLIPSE_95
        on_map = bool(np.linalg.norm(positions - truth, axis=1).min() <= MAPPED_M)
        probability = 0.0 if np.isnan(match.probability) else match.probability
        rows.append((probability >= threshold, right, probability, inside, on_map))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Answers(*columns)


@dataclass
class Result:
    """Everything that was measured of one student: by mode, condition; ``carried`` is seconds, inf for never."""

    on: dict[str, dict[str, list[Answers]]]
    elsewhere: dict[str, dict[str, list[Answers]]]
    leaving: dict[str, dict[str, list[Answers]]]
    carried: dict[str, dict[str, list[float]]]


def modes_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What is compared."""
    return (*MODES, TWO_CAMERAS) if arguments.rear else MODES


def measure(student: Student, arguments: argparse.Namespace) -> Result:
    """All drives of one student."""
    cache: Path | None = arguments.cache
    seed, regions, conditions = arguments.world_seed, arguments.regions, arguments.conditions

    modes = modes_of(arguments)
    cameras = (FRONT, REAR) if arguments.rear else (FRONT,)

    def load(region: str, condition: str, number: int) -> Drive:
        return described(student, {c: frames(region, condition, number, seed, cache, c) for c in cameras})

    drives = {region: load(region, MAPPED, MAP_DRIVE) for region in regions}
    whole = {r: mapped(student, drive, arguments.spacing, lambda part: True) for r, drive in drives.items()}
    holed = {
        r: mapped(student, drive, arguments.spacing, lambda part: not GONE_FROM <= part < GONE_TO)
        for r, drive in drives.items()
    }

    def empty() -> dict[str, dict[str, list[Answers]]]:
        return {mode: {condition: [] for condition in conditions} for mode in modes}

    carried: dict[str, dict[str, list[float]]] = {m: {c: [] for c in conditions} for m in modes if m in FOLLOWING}
    result = Result(empty(), empty(), empty(), carried)
    for region, condition in tqdm([(r, c) for r in regions for c in conditions], student.metadata.name, leave=False):
        drive = load(region, condition, QUERY_DRIVE)
        # The other region lies elsewhere: its map's frame has nothing to do with this one's.
        foreign = [whole[r] for r in regions if r != region][:1]
        for mode in modes:

            def ask(
                maps: Maps,
                drive: Drive = drive,
                mode: str = mode,
                seeds: tuple[str, str] = (region, condition),
            ) -> Answers:
                return localise(student, maps, drive, mode, generator(seed, "odometry", *seeds))

            result.on[mode][condition].append(ask(whole[region]))
            result.leaving[mode][condition].append(ask(holed[region]))
            result.elsewhere[mode][condition] += [ask(maps) for maps in foreign]
        for mode, found in carried.items():
            rng = generator(seed, "odometry", region, condition)
            found[condition].append(ask_carried(student, whole[region], drive, mode, rng))
    return result


def ask_carried(student: Student, maps: Maps, drive: Drive, mode: str, rng: np.random.Generator) -> float:
    """Seconds from being put down to the first right answer of the belief with odometry; inf where there is none."""
    count = len(drive.poses)
    first = int(CARRIED_FROM * count)
    order = [*range(first), *range(int(CARRIED_TO * count), count)]
    answers = localise(student, maps, drive, mode, rng, order)
    found = np.flatnonzero((answers.accepted & answers.right)[first:])
    between_s = float(drive.stamps_ns[1] - drive.stamps_ns[0]) / NS_PER_S
    return float(found[0] * between_s) if len(found) else np.inf


# --- the tables -------------------------------------------------------------------------------------------------------


def share(hits: NDArray[np.bool_]) -> float:
    """Percent of hits, NaN of nothing."""
    return 100.0 * float(hits.mean()) if len(hits) else float("nan")


def pooled(answers: Sequence[Answers], field: str, of: str = "") -> NDArray[Any]:
    """One field of several drives in a row, where the field ``of`` holds."""
    chosen = [getattr(a, field)[getattr(a, of)] if of else getattr(a, field) for a in answers]
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.bool_)


def values_of(found: Iterable[float]) -> list[float | None]:
    """One value for each student; None for what has no value."""
    return [None if np.isnan(value) else round(float(value), 2) for value in found]


def recall_at(precision: float, answers: Sequence[Answers]) -> float:
    """The greatest recall, percent, that any threshold on the probability has with this precision (0 to 1)."""
    probabilities = pooled(answers, "probabilities")
    order = np.argsort(probabilities, kind="stable")[::-1]
    hits = np.cumsum(pooled(answers, "right")[order])
    enough = hits / np.arange(1, len(hits) + 1) >= precision
    return 100.0 * float(hits[enough].max(initial=0)) / max(1, int(pooled(answers, "on_map").sum()))


def everything(table: dict[str, list[Answers]]) -> list[Answers]:
    """The answers under all conditions."""
    return [answer for answers in table.values() for answer in answers]


def by_condition(results: Sequence[Result], conditions: Sequence[str], modes: Sequence[str]) -> list[Row]:
    """How many frames were answered under each condition, how many of those rightly, and how many of all rightly."""
    table = []
    for condition in (*conditions, "all"):
        row: Row = {"condition": condition}
        for mode in modes:
            drives = [r.on[mode][condition] if condition != "all" else everything(r.on[mode]) for r in results]
            row["frames"] = len(pooled(drives[0], "accepted"))
            row[f"{mode}: accepted"] = values_of(pooled(drive, "accepted").sum() for drive in drives)
            row[f"{mode}: precision %"] = values_of(share(pooled(drive, "right", "accepted")) for drive in drives)
            row[f"{mode}: recall %"] = values_of(
                100.0 * _right(drive).sum() / max(1, pooled(drive, "on_map").sum()) for drive in drives
            )
        table.append(row)
    return table


def by_measure(results: Sequence[Result], modes: Sequence[str]) -> list[Row]:
    """What is said of drives that are not on the map or leave it, and how far the announced spread can be trusted."""
    lines: dict[str, Callable[[Result, str], float]] = {
        "unknown in another region, % of frames": lambda r, m: share(~pooled(everything(r.elsewhere[m]), "accepted")),
        "unknown where the map lacks the street, % of frames": lambda r, m: (
            100.0 - _accepted_off(everything(r.leaving[m]))
        ),
        "precision of a drive that leaves the map, %": lambda r, m: share(
            pooled(everything(r.leaving[m]), "right", "accepted")
        ),
        "truth in the announced 95 % ellipse, % of accepted": lambda r, m: share(
            pooled(everything(r.on[m]), "inside", "accepted")
        ),
        "best recall with 99 % precision (threshold in hindsight), %": lambda r, m: recall_at(
            0.99, everything(r.on[m])
        ),
    }
    return [
        {"measure": title, **{mode: values_of(value(r, mode) for r in results) for mode in modes}}
        for title, value in lines.items()
    ]


def carried_away(results: Sequence[Result], conditions: Sequence[str]) -> list[Row]:
    """How soon the belief finds a robot again that was put down elsewhere."""
    table = []
    for mode, condition in itertools.product(results[0].carried, (*conditions, "all")):
        seconds = [s for r in results for c, row in r.carried[mode].items() if condition in (c, "all") for s in row]
        middle, worst = ("never" if np.isinf(s) else round(float(s), 1) for s in (np.median(seconds), max(seconds)))
        within = sum(s <= 10.0 for s in seconds)
        row: Row = {
            "put_down_under": condition,
            "mode": mode,
            "found_again_within_10_s": within,
            "of_drives": len(seconds),
        }
        table.append(row | {"median_s": middle, "worst_s": worst})
    return table


def _right(answers: Sequence[Answers]) -> NDArray[np.bool_]:
    return np.asarray(pooled(answers, "accepted") & pooled(answers, "right"))


def _accepted_off(answers: Sequence[Answers]) -> float:
    off = ~pooled(answers, "on_map")
    return share(pooled(answers, "accepted")[off])


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the tables and return their rows."""
    options = parser(__doc__)
    options.add_argument(
        "students", type=Path, nargs="+", help="student artefacts (.pt2), one for each seed of training"
    )
    options.add_argument("--world_seed", type=int, default=0, help="of the simulated world")
    options.add_argument("--regions", nargs="+", default=["test-0", "test-1"], help="each is another's unmapped region")
    options.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    options.add_argument("--spacing", type=float, default=4.0, help="of the map's keyframes, metres")
    options.add_argument("--rear", action="store_true", help="a second camera that looks back")
    options.add_argument("--cache", type=Path, default=None, help="folder for rendered frames")
    args = options.parse_args(argv)
    results = [measure(Student.load(path, threads=1), args) for path in args.students]
    print(
        f"World {args.world_seed}, regions {', '.join(args.regions)}, map in the {MAPPED} with a keyframe "
        f"every {args.spacing:g} m, 5 frames a second at 8 m/s; right within {RIGHT_M:g} m; students: "
        f"{', '.join(path.stem for path in args.students)} (mean ± standard deviation)\n"
    )
    modes = modes_of(args)
    tables = (
        by_condition(results, args.conditions, modes),
        by_measure(results, modes),
        carried_away(results, args.conditions),
    )
    print("\n\n".join(markdown(table) for table in tables), flush=True)
    rows = [row for table in tables for row in table]
    write_report(args.json, "localization", rows)
    return rows


if __name__ == "__main__":
    main()
