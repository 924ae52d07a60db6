"""Looks at place maps, checks them, and makes one of several: the shell of ``vpr_kd_ros.map_operations``.

    map_tool info town_map
    map_tool verify town_map --student student.pt2
    map_tool merge monday_map tuesday_map --output town_map
    map_tool prune town_map --min-distance 2.0 --output small_map
    map_tool export town_map --format tum --output poses.txt
    map_tool picture town_map --output town.png

Where ROS 2 is not sourced: ``python -m vpr_kd_ros.map_tool``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vpr_kd_ros import map_operations
from vpr_kd_ros.command_line import run_command
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.map_files import MapContent, find_map, read_map, write_map


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="map_tool", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, output: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        if name == "merge":
            added.add_argument("maps", nargs="+", type=Path, help="folders of the maps, in order")
        else:
            added.add_argument("map", type=Path, help="folder of the map")
        if output is not None:
            added.add_argument("--output", type=Path, required=True, help=output)
        return added

    command("info", "student, frame, extent and sessions of a map")
    verify = command("verify", "check every file of a map against its checksum")
    verify.add_argument("--student", type=Path, help="and that this student artefact made it")
    command("merge", "one map of several of the same student and frame; ids are given anew", "folder of the new map")
    prune = command("prune", "drop places; ids stay", "folder of the new map")
    prune.add_argument(
        "--min-distance", type=float, help="drop places nearer to one of the same session that heads their way, metres"
    )
    prune.add_argument("--session", action="append", default=[], help="drop a session; may be given several times")
    export = command("export", "poses as text", "file to write")
    export.add_argument("--format", choices=("tum", "csv"), default="tum", help="tum: seconds x y z qx qy qz qw")
    picture = command("picture", "the route from above, a colour for each session", "image to write, .png")
    picture.add_argument("--size", type=int, default=1000, help="pixels of the longer side (default: 1000)")
    return top


def run(args: argparse.Namespace) -> str:
    """Do what the command line says and return what there is to tell.

    Raises:
        VprError: a map, an option or an output is wrong.
    """
    if args.command == "merge":
        content = map_operations.merge({str(path): read_map(path) for path in args.maps})
        return _save(content, args.output)
    content = read_map(args.map)
    if args.command == "verify":
        return _verify(content, args.map, args.student)
    if args.command == "prune":
        return _save(_prune(content, args.min_distance, args.session), args.output)
    if args.command == "export":
        text = map_operations.to_tum(content) if args.format == "tum" else map_operations.to_csv(content)
        return _write(args.output, text.encode(), f"{len(content.places)} poses")
    if args.command == "picture":
        return _picture(content, args.output, args.size)
    return map_operations.describe(content)


def _verify(content: MapContent, path: Path, student: Path | None) -> str:
    if student is not None:
        # Only here, for the student needs torch and the rest does not.
        from vpr_kd_ros.place_map import PlaceMap
        from vpr_kd_ros.student_file import StudentFile

        fingerprint = StudentFile.open(student).metadata.fingerprint
        dimension = content.descriptors.shape[1]
        PlaceMap(dimension, content.student_fingerprint, content.frame_id).require_student(fingerprint, str(path))
    return f"{path}: whole, {len(content.places)} places" + (f", made with {student}" if student else "")


def _prune(content: MapContent, min_distance_m: float | None, sessions: Sequence[str]) -> MapContent:
    if min_distance_m is None and not sessions:
        raise ConfigError("prune: give --min-distance, --session, or both")
    if sessions:
        content = map_operations.prune_sessions(content, sessions)
    return content if min_distance_m is None else map_operations.prune_near(content, min_distance_m)


def _picture(content: MapContent, output: Path, size: int) -> str:
    if not 100 <= size <= 20_000:
        raise ConfigError(f"--size: {size} pixels, wants 100 to 20000")
    image = map_operations.draw(content, size)
    done, png = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))
    if not done:
        raise DataError(f"{output}: the picture of {image.shape} could not be encoded")
    return _write(output, png.tobytes(), f"{image.shape[1]} x {image.shape[0]} pixels")


def _save(content: MapContent, output: Path) -> str:
    if (found := find_map(output)) is not None:
        raise ConfigError(f"--output: {found} exists; name another folder")
    write_map(output, content)
    return f"{output}: {len(content.places)} places"


def _write(output: Path, data: bytes, what: str) -> str:
    try:
        output.write_bytes(data)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror}") from error
    return f"{output}: {what}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the executable ``map_tool``."""
    return run_command(parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
