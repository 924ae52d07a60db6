"""The simulated robot as a ROS 2 node: drives a region once and publishes what it senses, in simulated time."""

from __future__ import annotations

import signal
import time
from typing import Any

from tqdm import tqdm

from training.simulation.noise import generator
from training.simulation.odometry import Odometer
from training.simulation.schedule import NS_PER_S, Renderer, RobotConfig, schedule
from vpr_kd_ros.errors import ConfigError, DataError, MissingDependencyError, did_you_mean
from vpr_kd_ros.geometry import Pose

REAR_TOPIC = "rear_camera/image_raw"
TOPICS = ("camera/image_raw", REAR_TOPIC, "lidar/points", "odom", "ground_truth/odom", "/clock")


def parse_wait_for(items: list[str]) -> dict[str, int]:
    """Topic to number of subscribers, of items ``TOPIC=COUNT``.

    Raises:
        ConfigError: an item of another form, or a topic that the robot does not publish.
    """
    wanted: dict[str, int] = {}
    for item in items:
        topic, _, count = item.partition("=")
        match = next((known for known in TOPICS if known.strip("/") == topic.strip("/")), None)
        if match is None:
            known = ", ".join(TOPICS)
            raise ConfigError(
                f"wait_for: the robot publishes no {topic!r}{did_you_mean(topic, TOPICS)}; topics: {known}"
            )
        if not count.isdigit():
            raise ConfigError(f"wait_for: {item!r}, wants TOPIC=COUNT, for example camera/image_raw=1")
        wanted[match] = int(count)
    return wanted


def drive(config: RobotConfig, wait_for: dict[str, int], timeout_s: float = 60.0) -> None:
    """Drive, publish, and return when the drive is over.

    Publishes ``camera/image_raw`` (Image, rgb8, frame ``camera``) and ``lidar/points`` (PointCloud2 x, y, z, intensity,
    frame ``base_link``) with SensorData QoS; ``odom`` (Odometry, ``odom`` to ``base_link``, drifting),
    ``ground_truth/odom`` (Odometry, ``map`` to ``base_link``, exact) and ``/clock`` reliably. With a rear camera also
    ``rear_camera/image_raw``, in frame ``rear_camera``.

    Args:
        config: the drive.
        wait_for: topic (of ``TOPICS``) to the number of subscribers that must be there before it starts.
        timeout_s: how long to wait for them, seconds.

    Raises:
        ConfigError: ``wait_for`` names the rear camera, and there is none.
        MissingDependencyError: ROS 2 is not there.
        DataError: the subscribers did not come.
    """
    if REAR_TOPIC in wait_for and not config.rear_camera:
        raise ConfigError(
            f"wait_for: the robot publishes {REAR_TOPIC} only with rear_camera; set it, or leave that out"
        )
    try:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
    except ImportError as error:
        raise MissingDependencyError(
            f"the live robot needs ROS 2 ({error}): source /opt/ros/jazzy/setup.bash, or on x86_64 without it: "
            "pip install ros-jazzy-rclpy ros-jazzy-rmw-fastrtps-cpp ros-jazzy-sensor-msgs ros-jazzy-nav-msgs"
        ) from error
    # Nothing here spins, so the signals are Python's: both end the drive as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with Renderer(config) as renderer:
            robot = Robot(rclpy.create_node("simulated_robot"), config)
            renderer.wait_until_ready()
            robot.wait_for_subscribers(wait_for, timeout_s)
            robot.drive(renderer)
    finally:
        rclpy.try_shutdown()
        signal.signal(signal.SIGTERM, before)


class Robot:
    """The node's publishers, and the clock that paces them.

    Args:
        node: an rclpy node.
        config: the drive.
    """

    def __init__(self, node: Any, config: RobotConfig) -> None:
        from nav_msgs.msg import Odometry
        from rclpy.qos import qos_profile_sensor_data
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import Image, PointCloud2

        self._config = config
        self._traverse = config.traverse()
        self._odometer = Odometer(generator(config.seed, "odometry", config.region, config.condition, config.number))
        images = ["camera/image_raw", REAR_TOPIC] if config.rear_camera else ["camera/image_raw"]
        self._publishers = {
            **{topic: node.create_publisher(Image, topic, qos_profile_sensor_data) for topic in images},
            "lidar/points": node.create_publisher(PointCloud2, "lidar/points", qos_profile_sensor_data),
            "odom": node.create_publisher(Odometry, "odom", 10),
            "ground_truth/odom": node.create_publisher(Odometry, "ground_truth/odom", 10),
            "/clock": node.create_publisher(Clock, "/clock", 10),
        }

    def wait_for_subscribers(self, wanted: dict[str, int], timeout_s: float) -> None:
        """Return once each topic has as many subscribers as wanted; DataError names those that have too few."""
        deadline = time.monotonic() + timeout_s
        while True:
            counts = {topic: self._publishers[topic].get_subscription_count() for topic in wanted}
            few = [topic for topic in wanted if counts[topic] < wanted[topic]]
            if not few:
                break
            if time.monotonic() > deadline:
                told = ", ".join(f"{topic} has {counts[topic]} of {wanted[topic]}" for topic in few)
                raise DataError(
                    f"after {timeout_s:g} s subscribers are missing: {told}; start the nodes that read these topics, "
                    "or ask for fewer with --wait_for"
                )
            time.sleep(0.05)
        if wanted:
            # The other side learns of the match a little later than we do.
            time.sleep(0.5)

    def drive(self, renderer: Renderer) -> None:
        """Publish the whole drive at its pace, then the last clock."""
        config = self._config
        events = schedule(config)
        begin = time.monotonic()
        with tqdm(total=round(config.distance_m), unit="m", desc=f"drive {config.region} {config.condition}") as bar:
            for elapsed_ns, name in events:
                due = begin + elapsed_ns / NS_PER_S / config.rate_factor
                frame = renderer.next() if name != "odometry" else None
                late = time.monotonic() - due
                if late < 0:
                    time.sleep(-late)
                else:
                    # Simulated time waits for the renderer: catching up in a burst would overrun the subscribers.
                    begin += late
                self._publish_clock(elapsed_ns)
                self._publish(name, elapsed_ns, frame)
                bar.update(round(config.speed * elapsed_ns / NS_PER_S) - bar.n)
            bar.update(bar.total - bar.n)
        self._finish()

    def _publish(self, name: str, elapsed_ns: int, frame: Any) -> None:
        from vpr_kd_ros.conversions import cloud_to_message, image_to_message, odometry_to_message

        stamp = self._traverse.first_stamp_ns + elapsed_ns
        if name in ("camera", "rear_camera"):
            self._publishers[f"{name}/image_raw"].publish(image_to_message(frame[0], stamp, name))
        elif name == "lidar":
            self._publishers["lidar/points"].publish(cloud_to_message(frame[0], frame[1], stamp, "base_link"))
        else:
            exact = self._pose(elapsed_ns)
            believed = self._odometer.update(exact)
            self._publishers["ground_truth/odom"].publish(odometry_to_message(exact, stamp, "map", "base_link"))
            self._publishers["odom"].publish(odometry_to_message(believed, stamp, "odom", "base_link"))

    def _pose(self, elapsed_ns: int) -> Pose:
        return self._traverse.pose(self._config.travelled_m(elapsed_ns))

    def _publish_clock(self, elapsed_ns: int) -> None:
        from rosgraph_msgs.msg import Clock

        from vpr_kd_ros.conversions import stamp_from_ns

        self._publishers["/clock"].publish(Clock(clock=stamp_from_ns(self._traverse.first_stamp_ns + elapsed_ns)))

    def _finish(self) -> None:
        from rclpy.duration import Duration

        # One more second of simulated time lets buffers that wait for later stamps give out what they hold.
        self._publish_clock(self._config.duration_ns + NS_PER_S)
        for topic in ("odom", "ground_truth/odom", "/clock"):
            self._publishers[topic].wait_for_all_acked(Duration(seconds=2))
        time.sleep(0.3)
