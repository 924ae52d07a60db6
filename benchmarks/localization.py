"""How far the localizer can be trusted: simulated drives that no student was trained or calibrated on.

``python benchmarks/localization.py out/demo/student.pt2``: in each region, a drive in the sun makes the map, and
another drive under each condition is localised in it: single frames, and the belief over time with drifting odometry
and without. The same drives are also localised in the map of another region (nothing but "unknown" is right there), in
a map that lacks half of the street (they leave it and come back), and with the robot carried away in the middle. Give
several artefacts, of students trained with several seeds, for a mean and a standard deviation. ``--cache FOLDER`` keeps
the rendered frames. About ten minutes on one core for one student and two regions, most of them rendering.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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


@dataclass(frozen=True)
class Drive:
    """Frames of one drive: descriptors (F, D) float32, true poses, stamps (F,) int64."""

    descriptors: NDArray[np.float32]
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
    region: str, condition: str, number: int, seed: int, cache: Path | None
) -> tuple[NDArray[np.uint8], Floats, Ints]:
    """Images (F, H, W, 3), poses (F, 7) and stamps (F,) of a drive, rendered or from the cache."""
    path = None if cache is None else cache / f"{seed}_{region}_{condition}_{number}.npz"
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return kept["images"], kept["poses"], kept["stamps"]
    config = RobotConfig(region=region, condition=condition, number=number, seed=seed)
    traverse = config.traverse()
    elapsed = np.arange(0, config.duration_ns + 1, round(NS_PER_S / config.camera_hz))
    travelled = [config.travelled_m(int(t)) for t in elapsed]
    images = np.array([traverse.photograph(s)[0] for s in tqdm(travelled, f"{region} {condition}", leave=False)])
    poses = np.array([[*pose.position, *pose.quaternion] for pose in map(traverse.pose, travelled)])
    stamps = traverse.first_stamp_ns + elapsed.astype(np.int64)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, images=images, poses=poses, stamps=stamps)
    return images, poses, stamps


def described(student: Student, images: NDArray[np.uint8], poses: Floats, stamps: Ints) -> Drive:
    """A drive as the student sees it."""
    return Drive(student.describe(list(images)), [Pose(row[:3], row[3:]) for row in poses], stamps)


def mapped(student: Student, drive: Drive, spacing_m: float, kept: Callable[[float], bool]) -> PlaceMap:
    """The map that the mapper makes of the part of a drive, 0 to 1, that is ``kept``."""
    recalled = Recalled(student)
    place_map = PlaceMap(student.metadata.descriptor_dim, student.metadata.fingerprint, "map")
    mapper = Mapper(recalled, place_map, MapperConfig(min_distance_m=spacing_m))
    picture = np.zeros((1, 1, 3), dtype=np.uint8)
    for i, pose in enumerate(drive.poses):
        if kept(i / len(drive.poses)):
            recalled.answer = drive.descriptors[i]
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
    student: Student, place_map: PlaceMap, drive: Drive, mode: str, rng: np.random.Generator, order: Sequence[int] = ()
) -> Answers:
    """Drive through a map, in this order of frames or from first to last, five frames a second."""
    order = order or range(len(drive.poses))
    threshold = LocalizerConfig().min_probability
    # Everything is answered here, so that other thresholds can be told from the same drive.
    localizer = Localizer(student, place_map, LocalizerConfig(mode=mode.split()[0], min_probability=1e-9))
    wheels = odometry(drive.poses, order, rng)
    rows = []
    for step, i in enumerate(order):
        truth = drive.poses[i].position[:2]
        # Time goes on evenly, whatever the order.
        stamp = int(drive.stamps_ns[step])
        match = localizer.find(drive.descriptors[i], stamp, wheels[step] if mode == "belief" else None)
        right = inside = False
        if match.pose is not None and match.covariance is not None:
            gap = truth - match.pose.position[:2]
            right = float(np.linalg.norm(gap)) <= RIGHT_M
            inside = float(gap @ np.linalg.solve(match.covariance[:2, :2], gap)) <= ELLIPSE_95
        on_map = bool(np.linalg.norm(place_map.positions[:, :2] - truth, axis=1).min() <= MAPPED_M)
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
    carried: dict[str, list[float]]


def measure(student: Student, arguments: argparse.Namespace) -> Result:
    """All drives of one student."""
    cache: Path | None = arguments.cache
    seed, regions, conditions = arguments.world_seed, arguments.regions, arguments.conditions

    def load(region: str, condition: str, number: int) -> Drive:
        return described(student, *frames(region, condition, number, seed, cache))

    drives = {region: load(region, MAPPED, MAP_DRIVE) for region in regions}
    whole = {r: mapped(student, drive, arguments.spacing, lambda part: True) for r, drive in drives.items()}
    holed = {
        r: mapped(student, drive, arguments.spacing, lambda part: not GONE_FROM <= part < GONE_TO)
        for r, drive in drives.items()
    }

    def empty() -> dict[str, dict[str, list[Answers]]]:
        return {mode: {condition: [] for condition in conditions} for mode in MODES}

    result = Result(empty(), empty(), empty(), {condition: [] for condition in conditions})
    for region, condition in tqdm([(r, c) for r in regions for c in conditions], student.metadata.name, leave=False):
        drive = load(region, condition, QUERY_DRIVE)
        # The other region lies elsewhere: its map's frame has nothing to do with this one's.
        foreign = [whole[r] for r in regions if r != region][:1]
        for mode in MODES:

            def ask(
                place_map: PlaceMap,
                drive: Drive = drive,
                mode: str = mode,
                seeds: tuple[str, str] = (region, condition),
            ) -> Answers:
                return localise(student, place_map, drive, mode, generator(seed, "odometry", *seeds))

            result.on[mode][condition].append(ask(whole[region]))
            result.leaving[mode][condition].append(ask(holed[region]))
            result.elsewhere[mode][condition] += [ask(place_map) for place_map in foreign]
        rng = generator(seed, "odometry", region, condition)
        result.carried[condition].append(ask_carried(student, whole[region], drive, rng))
    return result


def ask_carried(student: Student, place_map: PlaceMap, drive: Drive, rng: np.random.Generator) -> float:
    """Seconds from being put down to the first right answer of the belief with odometry; inf where there is none."""
    count = len(drive.poses)
    first = int(CARRIED_FROM * count)
    order = [*range(first), *range(int(CARRIED_TO * count), count)]
    answers = localise(student, place_map, drive, "belief", rng, order)
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


def cell(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, of several, standard deviation; nothing for what has no value."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


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


def print_tables(results: Sequence[Result], conditions: Sequence[str]) -> None:
    """Markdown: mean over the students, with their standard deviation."""
    print("| condition | frames | " + " | ".join(f"{mode}: accepted | precision % | recall %" for mode in MODES) + " |")
    print("|---|---" + "|---|---|---" * len(MODES) + "|")
    for condition in (*conditions, "all"):
        cells = []
        for mode in MODES:
            rows = [r.on[mode][condition] if condition != "all" else everything(r.on[mode]) for r in results]
            accepted = [float(pooled(row, "accepted").sum()) for row in rows]
            precision = [share(pooled(row, "right", "accepted")) for row in rows]
            recall = [100.0 * _right(row).sum() / max(1, pooled(row, "on_map").sum()) for row in rows]
            cells += [cell(accepted, 0), cell(precision), cell(recall)]
        print(f"| {condition} | {len(pooled(rows[0], 'accepted'))} | {' | '.join(cells)} |")
    print("\n| | " + " | ".join(MODES) + " |\n|---|" + "---|" * len(MODES))
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
    for title, value in lines.items():
        print(f"| {title} | " + " | ".join(cell([value(r, mode) for r in results]) for mode in MODES) + " |")
    print(
        "\n| put down elsewhere (belief) | found again within 10 s, of drives | median s | worst s |\n|---|---|---|---|"
    )
    for condition in (*conditions, "all"):
        seconds = [s for r in results for c, row in r.carried.items() if condition in (c, "all") for s in row]
        within = sum(s <= 10.0 for s in seconds)
        print(f"| {condition} | {within} of {len(seconds)} | {np.median(seconds):.1f} | {max(seconds):.1f} |")


def _right(answers: Sequence[Answers]) -> NDArray[np.bool_]:
    return np.asarray(pooled(answers, "accepted") & pooled(answers, "right"))


def _accepted_off(answers: Sequence[Answers]) -> float:
    off = ~pooled(answers, "on_map")
    return share(pooled(answers, "accepted")[off])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "students", type=Path, nargs="+", help="student artefacts (.pt2), one for each seed of training"
    )
    parser.add_argument("--world_seed", type=int, default=0, help="of the simulated world")
    parser.add_argument("--regions", nargs="+", default=["test-0", "test-1"], help="each is another's unmapped region")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--spacing", type=float, default=4.0, help="of the map's keyframes, metres")
    parser.add_argument("--cache", type=Path, default=None, help="folder for rendered frames")
    arguments = parser.parse_args()
    results = [measure(Student.load(path, threads=1), arguments) for path in arguments.students]
    print(
        f"World {arguments.world_seed}, regions {', '.join(arguments.regions)}, map in the {MAPPED} with a keyframe "
        f"every {arguments.spacing:g} m, 5 frames a second at 8 m/s; right within {RIGHT_M:g} m; students: "
        f"{', '.join(path.stem for path in arguments.students)} (mean ± standard deviation)\n"
    )
    print_tables(results, arguments.conditions)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
