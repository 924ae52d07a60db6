"""The student artefact as a file: a torch.export archive, sealed, and checked before torch reads it.

``torch.export.load`` runs pickle and evaluates text found in the archive, so an archive is inspected first, as plain
bytes and JSON:

* The file ends with a seal (a zip comment that holds the SHA-256 of every byte before it). A file that was cut short
  or changed by accident anywhere is refused. The seal is no signature: whoever edits a file can seal it again.
* What torch would execute is refused whether or not the seal fits: pickled weights or objects, sample inputs (torch
  unpickles them; ours are stored empty), compiled libraries, members of unknown names, operators other than ATen's
  and plain arithmetic, and shape expressions or guards that are more than arithmetic on sizes.

What remains is a network of ATen operators with raw weights. It can still be wrong, slow or hungry for memory: an
artefact from a stranger describes images as the stranger wishes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vpr_kd_ros.backends import UnreadableError
from vpr_kd_ros.errors import DataError

METADATA = "student.json"
"""Name of our metadata among the archive's extra files."""
ONNX = "onnx/student.onnx"
"""Member that holds the same student as a sealed ONNX model (``vpr_kd_ros.onnx_file``); torch passes over it."""

SEAL = b"vpr_kd_ros student sha256 "
_END_OF_ZIP = b"PK\x05\x06"
_END_LENGTH = 22
_DIGEST_LENGTH = 64

_MEMBERS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/student\.json|onnx/student\.onnx"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_WRITTEN_BY_THE_WRITER = {"byteorder", ".data/version", ".data/serialization_id"}
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge)"
)
# As torch writes it, such as Add(Integer(2), Symbol('s3', positive=True, integer=True)).
_SIZES = re.compile(
    r"(Symbol\('[a-z]\d+'(, (positive|nonnegative|integer)=True)*\)|Integer\(-?\d+\)|Rational\(-?\d+, \d+\)"
    r"|(Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|ModularIndexing)\(|\)|, |evaluate=False)*"
)
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def seal(archive: bytes) -> bytes:
    """Append the seal to the bytes of a zip archive; it stays a zip archive that torch reads."""
    if archive[-_END_LENGTH : -_END_LENGTH + 4] != _END_OF_ZIP or archive[-2:] != b"\0\0":
        raise ValueError("seal: not a zip archive without a comment")
    head = archive[:-2] + (len(SEAL) + _DIGEST_LENGTH).to_bytes(2, "little") + SEAL
    return head + hashlib.sha256(head).hexdigest().encode()


def check_seal(path: Path, data: bytes) -> None:
    """Refuse an archive that is not whole and unchanged since it was sealed.

    Raises:
        DataError: it is not a student artefact, or was changed.
    """
    if not data.startswith(b"PK\x03\x04"):
        raise DataError(
            f"{path}: not a student artefact (not a zip archive); export one with `python -m training export`"
        )
    if data[-_DIGEST_LENGTH - len(SEAL) : -_DIGEST_LENGTH] != SEAL:
        raise DataError(f"{path}: not a student artefact, or its end is missing; copy or export it again")
    if hashlib.sha256(data[:-_DIGEST_LENGTH]).hexdigest().encode() != data[-_DIGEST_LENGTH:]:
        raise DataError(f"{path}: damaged (its content does not fit its SHA-256); copy or export it again")


def read_metadata(path: Path, archive: bytes) -> dict[str, Any]:
    """Our metadata from the archive's bytes; nothing else of it is read.

    Raises:
        DataError: it holds none.
    """
    try:
        values = json.loads(_reader(path, archive).read_bytes(f"extra/{METADATA}"))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path}: not a student artefact (no readable {METADATA} in it)") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a student artefact ({METADATA} is not a table)")
    return values


def read_onnx(path: Path, archive: bytes) -> bytes | None:
    """The sealed ONNX model in the archive's bytes, unchecked; None where it was exported without one."""
    reader = _reader(path, archive)
    return bytes(reader.read_bytes(ONNX)) if ONNX in reader.get_file_names() else None


def with_onnx(path: Path, archive: bytes, model: bytes) -> bytes:
    """An archive, not sealed yet, with a sealed ONNX model as one more member."""
    from torch.export.pt2_archive import PT2ArchiveWriter

    reader = _reader(path, archive)
    buffer = io.BytesIO()
    writer = PT2ArchiveWriter(buffer)
    for name in reader.get_file_names():
        if name not in _WRITTEN_BY_THE_WRITER:
            writer.write_bytes(name, reader.read_bytes(name))
    writer.write_bytes(ONNX, model)
    writer.close()
    return buffer.getvalue()


def program_digest(path: Path, archive: bytes) -> str:
    """SHA-256, hexadecimal, of the archive's program without its weights."""
    return hashlib.sha256(_reader(path, archive).read_bytes("models/model.json")).hexdigest()


def check_inert(path: Path, archive: bytes) -> None:
    """Refuse an archive that holds anything torch would execute while it loads or runs it.

    The members are read with torch's own reader, so that no difference between two zip readers can be exploited.

    Raises:
        DataError: naming what was found.
    """
    try:
        reader = _reader(path, archive)
        names = reader.get_file_names()
        if unknown := [name for name in names if not _MEMBERS.fullmatch(name)]:
            raise DataError(f"{path}: refused, it holds members that no student has: {unknown[:3]}")
        if len(names) != len(set(names)):
            raise DataError(f"{path}: refused, it holds members of the same name")
        if reader.read_bytes("data/sample_inputs/model.pt"):
            raise DataError(f"{path}: refused, it holds pickled sample inputs")
        for kind in ("weights", "constants"):
            payloads = json.loads(reader.read_bytes(f"data/{kind}/model_{kind}_config.json"))["config"]
            if pickled := [name for name, payload in payloads.items() if payload["use_pickle"] is not False]:
                raise DataError(f"{path}: refused, it holds pickled {kind}: {pickled[:3]}")
        program = json.loads(reader.read_bytes("models/model.json"))
        if program["guards_code"]:
            raise DataError(f"{path}: refused, it holds guards in Python: {program['guards_code'][:1]}")
        for key, value in _walk(program):
            _check_value(path, key, value)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a torch.export archive that this version knows: {error!r}") from error


def _reader(path: Path, archive: bytes) -> Any:
    try:
        # Here, for an older torch has none and still runs the student's ONNX.
        from torch.export.pt2_archive import PT2ArchiveReader
    except ImportError:
        raise UnreadableError(
            f"{path}: torch {torch.__version__} reads no .pt2 archives; give the .onnx file that was exported beside it"
        ) from None
    return PT2ArchiveReader(io.BytesIO(archive))


def _check_value(path: Path, key: str, value: Any) -> None:
    """Check one entry of the program's JSON, wherever in it the entry stands."""
    if key in ("target", "as_operator") and isinstance(value, str) and not _OPERATORS.fullmatch(value):
        raise DataError(f"{path}: refused, operator {value!r} is not one that students use")
    if key == "expr_str" and not _SIZES.fullmatch(value):
        raise DataError(f"{path}: refused, {value!r} is not arithmetic on sizes")
    if key in ("in_spec", "out_spec"):
        # A context may name any importable enum; the structure of one tensor in and one out needs none.
        tree = json.loads(value)
        kinds = [kind for name, kind in _walk(tree) if name == "type"]
        if "__enum__" in value or not set(kinds) <= _TREE_TYPES:
            raise DataError(f"{path}: refused, its inputs or outputs are not plain tensors: {value[:80]}")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) pair of every table inside JSON data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)
