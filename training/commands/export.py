"""``python -m training export``."""

from __future__ import annotations

import sys
from pathlib import Path

import jsonargparse

from training.export import export_student
from training.sessions import load_sessions
from vpr_kd_ros.backends import PRECISIONS

DESCRIPTION = """Write a trained student as the artefact that the robot loads: network, pre-processing, fingerprint and
the calibration from similarity to the probability of being right, learnt on sessions that were not trained on.

Two files come of it: student.pt2, with the network for torch and, as ONNX, for ONNX Runtime and TensorRT; and
student.onnx, that ONNX by itself, for robots whose torch does not read .pt2 files. Either is enough, and maps made with
one are read with the other. Every runtime of this machine is compared with the checkpoint, and nothing is written if
one differs.

Example: python -m training export --run runs/student --sessions sessions/validation --out student.pt2"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training export", description=DESCRIPTION)
    result.add_argument("--run", type=str, required=True, help="the run folder of a trained camera student")
    result.add_argument("--sessions", nargs="+", required=True, help="labelled sessions for the calibration")
    result.add_argument("--out", type=str, required=True, help="the .pt2 file to write; the .onnx comes beside it")
    result.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="to compare")
    result.add_argument("--compare_images", type=int, default=1000, help="images to compare, about, for each runtime")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Export and say what was checked."""
    done = export_student(
        Path(args.run),
        Path(args.out),
        load_sessions(args.sessions),
        args.compare_images,
        args.precisions,
        lambda text: print(text, file=sys.stderr),
    )
    calibration = done.metadata.calibration
    assert calibration is not None
    print(
        f"{' and '.join(map(str, done.files))}: {done.metadata.name}, {done.metadata.descriptor_dim}-d, fingerprint "
        f"{done.metadata.fingerprint[:12]}\n"
        f"calibrated on {calibration.right + calibration.wrong} matches, {calibration.right} of them right\n"
        f"parity with the checkpoint, whose recall@1 is {100 * done.recall_at_1:.2f} % of {done.queries} queries:"
    )
    for parity in done.metadata.parity:
        print(
            f"  {parity.runtime}, {parity.precision}: cosine {parity.cosine:.7f} at least over {parity.images} images, "
            f"recall@1 {100 * parity.recall_change:+.2f} points"
        )
