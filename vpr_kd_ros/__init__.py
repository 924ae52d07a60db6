"""Onboard visual place recognition with students taught by LiDAR: the part that runs on the robot."""

__version__ = "0.1.0"
