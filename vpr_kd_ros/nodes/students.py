"""Loading the student of a node as its parameters say."""

from __future__ import annotations

from pathlib import Path

from vpr_kd_ros.nodes.base import VprNode
from vpr_kd_ros.nodes.student_parameters import StudentParameters
from vpr_kd_ros.student import Student


def load_student(node: VprNode[StudentParameters]) -> Student:
    """The student of a node that is being configured; its log tells what runs it and why.

    Raises:
        VprError: see ``Student.load``.
    """
    config = node.config
    return Student.load(
        Path(config.student).expanduser(),
        device=config.device,
        threads=config.threads or None,
        backend=config.backend,
        precision=config.precision,
        notice=node.logger.info,
    )
