"""``python -m training export``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from training.export import export_student
from training.sessions import load_sessions

DESCRIPTION = """Write a trained student as the artefact that the robot loads: network, pre-processing, fingerprint and
the calibration from similarity to the probability of being right, learnt on sessions that were not trained on.

Example: python -m training export --run runs/student --sessions sessions/validation --out student.pt2"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training export", description=DESCRIPTION)
    result.add_argument("--run", type=str, required=True, help="the run folder of a trained camera student")
    result.add_argument("--sessions", nargs="+", required=True, help="labelled sessions for the calibration")
    result.add_argument("--out", type=str, required=True, help="the .pt2 file to write")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Export and say what was checked."""
    done = export_student(Path(args.run), Path(args.out), load_sessions(args.sessions))
    calibration = done.metadata.calibration
    assert calibration is not None
    print(
        f"{args.out}: {done.metadata.name}, {done.metadata.descriptor_dim}-d, fingerprint "
        f"{done.metadata.fingerprint[:12]}\nparity with the checkpoint: cosine {done.parity:.7f} at least, over "
        f"{done.images} images\ncalibrated on {calibration.right + calibration.wrong} matches, "
        f"{calibration.right} of them right"
    )
