"""Opening a student artefact: a ``.pt2`` archive with an ONNX model in it, or that ONNX model by itself.

Both carry the same metadata and the same fingerprint, so that maps made with one are read with the other.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.export import ExportedProgram

from vpr_kd_ros import artefact
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.onnx_file import is_sealed_onnx, read_sealed_onnx, seal_onnx
from vpr_kd_ros.program import check_signature, fingerprint, load_program, without_traces
from vpr_kd_ros.student_metadata import SCHEMA, StudentMetadata


@dataclass(frozen=True)
class StudentFile:
    """A student artefact, whole and read into memory.

    Attributes:
        path: where it was read; named in errors.
        metadata: of the student.
        onnx: the sealed ONNX model; None where a ``.pt2`` was exported without one.
        archive: the sealed ``.pt2``; None where the file was an ONNX model by itself.
    """

    path: Path
    metadata: StudentMetadata
    onnx: bytes | None
    archive: bytes | None

    @classmethod
    def open(cls, path: str | Path) -> StudentFile:
        """Read and verify a ``.pt2`` or ``.onnx`` artefact; what it is tells its content, not its name.

        Raises:
            DataError: it cannot be read, is not a student artefact, is damaged, or is of a newer schema.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if is_sealed_onnx(data):
            return cls(path, _metadata(path, read_sealed_onnx(path, data)), data, None)
        artefact.check_seal(path, data)
        values = artefact.read_metadata(path, data)
        metadata = _metadata(path, values)
        onnx = artefact.read_onnx(path, data)
        if onnx is not None and (not is_sealed_onnx(onnx) or read_sealed_onnx(path, onnx) != values):
            raise DataError(f"{path}: its ONNX model is of another student than its metadata; export it again")
        return cls(path, metadata, onnx, data)

    def program(self) -> ExportedProgram:
        """The torch.export program, inspected before torch may load it.

        Raises:
            DataError: there is none in the file, it holds what torch would execute, this torch cannot read it, or it
                does not fit the metadata.
        """
        if self.archive is None:
            raise DataError(f"{self.path}: holds no torch program; give the .pt2 file, or use backend onnxruntime")
        artefact.check_inert(self.path, self.archive)
        exported = load_program(self.path, self.archive)
        check_signature(self.path, exported, self.metadata)
        if fingerprint(exported, self.metadata.preprocess) != self.metadata.fingerprint:
            raise DataError(f"{self.path}: its weights or pre-processing do not fit its fingerprint; export it again")
        return exported

    def digests(self) -> dict[str, str]:
        """What of the networks the fingerprint does not cover: SHA-256 of the ONNX model and of the torch program."""
        digests = {}
        if self.onnx is not None:
            digests["onnx"] = hashlib.sha256(self.onnx).hexdigest()
        if self.archive is not None:
            digests["program"] = artefact.program_digest(self.path, self.archive)
        return digests


def save_student(
    path: str | Path, exported: ExportedProgram, metadata: StudentMetadata, onnx: bytes | None = None
) -> StudentMetadata:
    """Write a student artefact; a kill while it writes leaves the old file or none.

    Args:
        path: ends in ``.pt2``; an artefact that is already there is replaced.
        exported: maps float32 (B, 3, height, width), dynamic B, to float32 (B, D). Its sample inputs and stack traces
            are not stored.
        metadata: its fingerprint and schema are filled in here.
        onnx: the same network as a serialised ONNX model, to go into the archive as well.

    Returns:
        The metadata as stored.

    Raises:
        DataError: the program does not map what the metadata says, or holds what no robot would load.
    """
    path = Path(path)
    check_signature(path, exported, metadata)
    metadata = replace(metadata, fingerprint=fingerprint(exported, metadata.preprocess), schema=SCHEMA)
    values = metadata.to_dict()
    buffer = io.BytesIO()
    torch.export.save(without_traces(exported), buffer, extra_files={artefact.METADATA: json.dumps(values, indent=1)})
    archive = buffer.getvalue()
    if onnx is not None:
        sealed = seal_onnx(onnx, values)
        read_sealed_onnx(path, sealed)
        archive = artefact.with_onnx(path, archive, sealed)
    artefact.check_inert(path, archive)
    load_program(path, archive)  # torch writes some programs that it cannot read
    write_atomically(path, artefact.seal(archive))
    return metadata


def save_onnx(path: str | Path, source: StudentFile) -> None:
    """Write the ONNX model of an artefact to a file of its own, which is an artefact too.

    Raises:
        DataError: it has none.
    """
    if source.onnx is None:
        raise DataError(f"{source.path}: holds no ONNX model; export it again")
    write_atomically(Path(path), source.onnx)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file, on the disk before its name shows it; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _metadata(path: Path, values: dict[str, object]) -> StudentMetadata:
    try:
        return StudentMetadata.from_dict(values)
    except DataError as error:
        raise DataError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
