"""The demo's steps, in the order in which an owner of a robot would take them."""

from __future__ import annotations

import json
import platform
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.demo.live import Live
from training.demo.processes import node, parameters, ros_environment, run_command, run_together
from training.demo.report import write_report
from vpr_kd_ros.backends.devices import cpu_name
from vpr_kd_ros.errors import ConfigError, MissingDependencyError
from vpr_kd_ros.place_map import PlaceMap

SURVEY_REGION, TEST_REGION = "train-0", "test-0"
RIGHT_M = 12.0
"""A live pose this near the truth is right: keyframes lie 8 m apart on the road, and drives some metres beside it."""


@dataclass(frozen=True)
class DemoConfig:
    """What the demo does.

    Attributes:
        seed: of weights and batches.
        mapped: condition of the drive the place map is made from.
        live: condition of the drive that is localised.
        rate_factor: how many times faster than real time the simulated robot drives, where the machine keeps up.
    """

    seed: int = 0
    mapped: str = "sun"
    live: str = "rain"
    rate_factor: float = 4.0


class Demo:
    """The steps, each timed; every artefact is a file below ``out``."""

    def __init__(self, out: Path, config: DemoConfig) -> None:
        self.out = out
        self.config = config
        self.sessions = out / "sessions"
        self.runs = out / "runs"
        self.bags = out / "bags"
        self.student = out / "student.pt2"
        self.map = out / "map"
        self.live = out / "live"
        self._environment = ros_environment()
        self._seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Take every step; returns the summary."""
        start = time.monotonic()
        for title, step in (
            ("simulate the town and its recorded drives", self.simulate),
            ("record a surveyed drive over ROS 2", self.record),
            ("ingest the bag", self.ingest),
            ("teach the LiDAR teacher, and beside it a camera student that learns by itself", self.teach),
            ("distil a camera student", self.distill),
            ("evaluate on regions never seen", self.evaluate),
            ("export the student", self.export),
            ("build a place map", self.build_map),
            ("localise live in other weather", self.localise),
        ):
            self._timed(title, step)
        summary = self._summary(time.monotonic() - start)
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        write_report(self.out, summary)
        return summary

    # --- the steps ---------------------------------------------------------------------------------------------------

    def simulate(self) -> None:
        """Drives of training, validation and test regions, as sessions."""
        run_command("training", ["simulate", "--out", str(self.sessions)])

    def record(self) -> None:
        """The robot drives a training region in the sun; the recorder, in its own process, writes the bag."""
        self._drive_and_record(SURVEY_REGION, "sun", self.bags / "survey")

    def ingest(self) -> None:
        """The bag becomes one more labelled training session."""
        arguments = ["--region", SURVEY_REGION, "--condition", "sun", "--name", f"{SURVEY_REGION}-recorded"]
        topics = ["--pose_topic", "/ground_truth/odom", "--keyframe_distance_m", "8"]
        run_command(
            "training",
            ["ingest", str(self.bags / "survey"), "--out", str(self.sessions / "train"), *arguments, *topics],
        )

    def teach(self) -> None:
        """The teacher learns from the drives with poses; so does, for comparison, a student without a teacher."""
        run_together(
            {
                "teacher": ["teach", *self._training("teacher")],
                "student": ["teach", *self._training("student")],
            },
            self.out / "logs",
        )

    def distill(self) -> None:
        """The student that learns on every drive: the teacher places those without poses, and its relations teach."""
        teacher = ["--teacher", str(self.runs / "teacher")]
        run_command("training", ["distill", *self._training("distilvpr"), *teacher])

    def evaluate(self) -> None:
        """AR@1 and AR@1 % of all three, between the traverses of the test regions."""
        for run in ("teacher", "student", "distilvpr"):
            run_command(
                "training",
                ["evaluate", "--model", str(self.runs / run), "--sessions", str(self.sessions / "test")]
                + ["--out", str(self.out / "evaluation" / f"{run}.json")],
            )

    def export(self) -> None:
        """The distilled student becomes the artefact that the robot loads, calibrated on the validation region."""
        run_command(
            "training",
            ["export", "--run", str(self.runs / "distilvpr"), "--sessions", str(self.sessions / "validation")]
            + ["--out", str(self.student)],
        )

    def build_map(self) -> None:
        """A drive of a test region is recorded, then replayed to the mapper."""
        bag = self.bags / "mapping"
        self._drive_and_record(TEST_REGION, self.config.mapped, bag)
        arguments = parameters(student=self.student, map=self.map, min_distance_m=4.0, threads=1, use_sim_time=True)
        remaps = ["-r", "image:=camera/image_raw", "-r", "pose:=ground_truth/odom"]
        with node("vpr_kd_ros.nodes.mapper", [*arguments, *remaps], self._environment, self._log("mapper")):
            wait = "wait_for_subscribers:=['/camera/image_raw', '/ground_truth/odom']"
            run_command(
                "vpr_kd_ros.nodes.replay",
                [*parameters(bag=bag, rate=self.config.rate_factor), "-p", wait],
                self._environment,
            )

    def localise(self) -> None:
        """Another drive of the test region in other weather; a watcher writes down what the localizer says."""
        arguments = parameters(student=self.student, map=self.map, mode="belief", threads=1, use_sim_time=True)
        remaps = ["-r", "image:=camera/image_raw"]
        with (
            node("vpr_kd_ros.nodes.localizer", [*arguments, *remaps], self._environment, self._log("localizer")),
            node("training.demo.watch", [str(self.live)], self._environment, self._log("watch")),
        ):
            self._drive(TEST_REGION, self.config.live, number=2, subscribers={"camera/image_raw": 2, "odom": 1})
            time.sleep(2.0)  # the last answers and one more diagnostics message are still on their way

    # --- what the steps share ----------------------------------------------------------------------------------------

    def _drive_and_record(self, region: str, condition: str, bag: Path) -> None:
        topics = ("/camera/image_raw", "/lidar/points", "/odom", "/ground_truth/odom")
        listed = f"[{', '.join(repr(topic) for topic in topics)}]"
        arguments = parameters(output=bag, topics=listed, use_sim_time=True)
        with node("vpr_kd_ros.nodes.recorder", arguments, self._environment, self._log(f"recorder-{bag.name}")):
            self._drive(region, condition, number=1, subscribers=dict.fromkeys(topics, 1))

    def _drive(self, region: str, condition: str, number: int, subscribers: dict[str, int]) -> None:
        wait = [f"{topic}={count}" for topic, count in subscribers.items()]
        run_command(
            "training",
            ["drive", "--region", region, "--condition", condition, "--number", str(number)]
            + ["--rate_factor", str(self.config.rate_factor), "--wait_for", *wait],
            self._environment,
        )

    def _training(self, name: str) -> list[str]:
        return [
            *("--config", f"config/town/{name}.yaml", "--seed", str(self.config.seed)),
            *("--train", str(self.sessions / "train"), "--validation", str(self.sessions / "validation")),
            *("--out", str(self.runs / name)),
        ]

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"

    def _timed(self, title: str, step: Callable[[], None]) -> None:
        print(f"\n=== {len(self._seconds) + 1}. {title}", flush=True)
        start = time.monotonic()
        step()
        self._seconds[step.__name__] = round(time.monotonic() - start, 1)
        print(f"    {self._seconds[step.__name__]:.1f} s", flush=True)

    def _summary(self, seconds: float) -> dict[str, Any]:
        evaluations = {
            run: json.loads((self.out / "evaluation" / f"{run}.json").read_text())
            for run in ("teacher", "student", "distilvpr")
        }
        places = PlaceMap.load(self.map)
        watched = json.loads((self.live / "live.json").read_text())
        live = Live.from_watch(watched).summary(places.positions[:, :2], RIGHT_M)

        def result(run: str) -> dict[str, Any]:
            evaluation = evaluations[run]
            return {
                "ar1": evaluation["ar1"],
                "ar1_percent": evaluation["ar1_percent"],
                "seed": self.config.seed,
                "by_condition": evaluation["by_query_condition"],
            }

        return {
            "teacher_ar1": result("teacher"),
            "student_plain_ar1": result("student"),
            "student_distilled_ar1": result("distilvpr"),
            "protocol": evaluations["teacher"]["protocol"],
            "live": {
                **live,
                "region": TEST_REGION,
                "mapped": self.config.mapped,
                "condition": self.config.live,
                "places": len(places),
                "diagnostics": watched["diagnostics"],
            },
            "seconds": {**self._seconds, "total": round(seconds, 1)},
            "peak_process_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
            "machine": {"processor": cpu_name(), "python": platform.python_version()},
        }


def run_demo(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Run the demo in a fresh folder; returns the summary, which is also in ``out/summary.json``.

    Raises:
        ConfigError: ``out`` holds something that is not an earlier demo.
        MissingDependencyError: rclpy is not there.
        StepError: a step failed; what it left can be looked at.
    """
    try:
        import rclpy  # noqa: F401  # the steps below need it, in processes of their own
    except ImportError as error:
        raise MissingDependencyError(
            "the demo needs ROS 2: source an installation, or pip install -r requirements/ros.txt"
        ) from error
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ConfigError(f"{out}: not empty, and not an earlier demo; choose another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.write_text(json.dumps({"seed": config.seed, "mapped": config.mapped, "live": config.live}) + "\n")
    return Demo(out.resolve(), config).run()
