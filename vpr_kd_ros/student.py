"""Students: networks that describe a camera image by one vector, and the artefact they travel in.

A student artefact is a torch.export archive (``.pt2``) with our metadata inside. Training writes it, the robot reads it
without timm or torchvision. See ``vpr_kd_ros.artefact`` for what is checked before torch may open it.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from vpr_kd_ros.artefact import METADATA, check_inert, read_metadata, read_sealed, seal
from vpr_kd_ros.backends import Backend
from vpr_kd_ros.backends.torch_backend import TorchBackend
from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import Preprocess

SCHEMA = 1
MAX_BATCH = 32
"""Images that go through the network at once; more are cut into batches of this size."""


@dataclass(frozen=True)
class StudentMetadata:
    """What an artefact says about its student.

    Attributes:
        name: of the student, for people.
        method: the distillation method that taught it.
        descriptor_dim: length D of a descriptor.
        preprocess: from image to network input.
        training_run: where it comes from: configuration, versions, data; plain JSON values.
        calibration: from similarity to the probability of being right; None where it was never measured.
        fingerprint: SHA-256 over weights and pre-processing, hexadecimal; ``save_student`` fills it in. Descriptors of
            two students compare only where this is equal. The calibration is not part of it.
        schema: of the artefact.
    """

    name: str
    method: str
    descriptor_dim: int
    preprocess: Preprocess
    training_run: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    fingerprint: str = ""
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": self.schema,
            "name": self.name,
            "method": self.method,
            "descriptor_dim": self.descriptor_dim,
            "preprocess": self.preprocess.to_dict(),
            "training_run": self.training_run,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudentMetadata:
        """The inverse of ``to_dict``.

        Raises:
            DataError: the schema is newer, a key is missing or unknown, or a value has the wrong type.
        """
        schema = values.get("schema")
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise DataError(f"schema {schema!r}; this version reads 1 to {SCHEMA}: update vpr_kd_ros")
        types: dict[str, type | tuple[type, ...]] = {
            "schema": int,
            "name": str,
            "method": str,
            "descriptor_dim": int,
            "preprocess": dict,
            "training_run": dict,
            "calibration": (dict, type(None)),
            "fingerprint": str,
        }
        if set(values) != set(types):
            raise DataError(f"wants the keys {sorted(types)}, got {sorted(values)}")
        if wrong := [key for key, kind in types.items() if not isinstance(values[key], kind)]:
            raise DataError(f"{wrong[0]}: {values[wrong[0]]!r} has the wrong type")
        calibration = values["calibration"]
        return cls(
            name=values["name"],
            method=values["method"],
            descriptor_dim=values["descriptor_dim"],
            preprocess=Preprocess.from_dict(values["preprocess"]),
            training_run=values["training_run"],
            calibration=None if calibration is None else Calibration.from_dict(calibration),
            fingerprint=values["fingerprint"],
            schema=schema,
        )


def fingerprint(exported: ExportedProgram, preprocess: Preprocess) -> str:
    """SHA-256, hexadecimal, over the pre-processing and each weight's name, dtype, shape and bytes, sorted by name."""
    digest = hashlib.sha256(json.dumps(preprocess.to_dict(), sort_keys=True).encode())
    tensors = {**exported.state_dict, **exported.constants}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_student(path: str | Path, exported: ExportedProgram, metadata: StudentMetadata) -> StudentMetadata:
    """Write a student artefact; a kill while it writes leaves the old file or none.

    Args:
        path: ends in ``.pt2``; an artefact that is already there is replaced.
        exported: maps float32 (B, 3, height, width), dynamic B, to float32 (B, D). Its sample inputs and stack traces
            are not stored.
        metadata: its fingerprint is filled in here.

    Returns:
        The metadata as stored.

    Raises:
        DataError: the program does not map what the metadata says, or holds what no robot would load.
    """
    path = Path(path)
    _check_signature(path, exported, metadata)
    metadata = replace(metadata, fingerprint=fingerprint(exported, metadata.preprocess))
    archive = io.BytesIO()
    torch.export.save(
        _without_traces(exported), archive, extra_files={METADATA: json.dumps(metadata.to_dict(), indent=1)}
    )
    check_inert(path, archive.getvalue())
    _load_program(path, archive.getvalue())  # torch writes some programs that it cannot read
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb") as file:
        file.write(seal(archive.getvalue()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return metadata


class Student:
    """A loaded student: images in, descriptors out."""

    def __init__(self, metadata: StudentMetadata, backend: Backend) -> None:
        self.metadata = metadata
        self._backend = backend

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", threads: int | None = None) -> Student:
        """Verify and open an artefact.

        Args:
            path: of the ``.pt2`` file.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            threads: CPU threads of torch in this process; torch's default when None.

        Raises:
            DataError: the file is not a student artefact, is damaged, is of a newer schema, or does not hold what its
                metadata says.
            ConfigError: the device is not there.
        """
        path = Path(path)
        archive = read_sealed(path)
        try:
            metadata = StudentMetadata.from_dict(read_metadata(path, archive))
        except DataError as error:
            raise DataError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
        check_inert(path, archive)
        exported = _load_program(path, archive)
        _check_signature(path, exported, metadata)
        if fingerprint(exported, metadata.preprocess) != metadata.fingerprint:
            raise DataError(f"{path}: its weights or pre-processing do not fit its fingerprint; export it again")
        return cls(metadata, TorchBackend(exported, device, threads))

    def describe(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Descriptors, (B, D) float32 of length 1, of RGB images, each (H, W, 3) uint8 of any size.

        A network output without a direction (all zeros, or not finite) gives a row of zeros or NaN.

        Raises:
            DataError: an image is not RGB uint8.
        """
        preprocess = self.metadata.preprocess
        descriptors = np.empty((len(images), self.metadata.descriptor_dim), dtype=np.float32)
        for start in range(0, len(images), MAX_BATCH):
            pixels = torch.stack([preprocess.resize(image) for image in images[start : start + MAX_BATCH]])
            rows = self._backend.describe(preprocess.normalise(pixels.to(self._backend.device)))
            if rows.shape != (len(pixels), self.metadata.descriptor_dim) or rows.dtype != torch.float32:
                raise DataError(
                    f"student {self.metadata.name!r}: gave {tuple(rows.shape)} {rows.dtype} for {len(pixels)} images, "
                    f"its metadata promises descriptors of {self.metadata.descriptor_dim} float32; export it again"
                )
            descriptors[start : start + len(pixels)] = torch.nn.functional.normalize(rows, dim=1).cpu().numpy()
        return descriptors


def _load_program(path: Path, archive: bytes) -> ExportedProgram:
    """The program in the verified bytes; reading the file anew would leave time to change it."""
    try:
        return torch.export.load(io.BytesIO(archive))
    except Exception as error:  # torch raises what it likes: RuntimeError, AssertionError, SpecViolationError, KeyError
        raise DataError(
            f"{path}: torch {torch.__version__} cannot read it ({error}); export it again with this torch, from a "
            f"model without autocast regions"
        ) from error


def _check_signature(path: Path, exported: ExportedProgram, metadata: StudentMetadata) -> None:
    """Refuse a program that does not map float32 (B, 3, height, width), any B, to float32 (B, D)."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    inputs = [values.get(str(name)) for name in exported.graph_signature.user_inputs]
    outputs = [values.get(str(name)) for name in exported.graph_signature.user_outputs]
    preprocess = metadata.preprocess
    for what, found, wanted in (
        ("input", inputs, (3, preprocess.height, preprocess.width)),
        ("output", outputs, (metadata.descriptor_dim,)),
    ):
        if len(found) != 1 or not _is_batch_of(found[0], wanted):
            shapes = [(tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else type(v).__name__ for v in found]
            raise DataError(f"{path}: its {what} is {shapes}, wants one float32 tensor (dynamic B, {wanted})")


def _is_batch_of(value: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.ndim != 1 + len(shape):
        return False
    batch: Any = value.shape[0]
    return isinstance(batch, torch.SymInt) and tuple(value.shape[1:]) == shape


def _without_traces(exported: ExportedProgram) -> ExportedProgram:
    """A copy without sample inputs, which torch would unpickle, and without the exporting machine's file names."""
    bare = copy.deepcopy(exported)
    bare.example_inputs = None
    for module in bare.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return bare
