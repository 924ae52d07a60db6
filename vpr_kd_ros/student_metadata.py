"""What a student artefact says about its student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import Preprocess

SCHEMA = 2
"""1 had no ``parity``; it is still read."""


@dataclass(frozen=True)
class Parity:
    """How near one runtime comes to the checkpoint, measured when the student was exported.

    Attributes:
        runtime: backend and device, such as ``onnxruntime cpu``.
        precision: ``fp32`` or ``fp16``.
        cosine: least one between the checkpoint's and the runtime's descriptor of the same image.
        recall_at_1: queries described by this runtime, searched in a map that the checkpoint described; in [0, 1].
        recall_change: that less the checkpoint's own recall@1.
        images: how many were compared.
    """

    runtime: str
    precision: str
    cosine: float
    recall_at_1: float
    recall_change: float
    images: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Parity:
        """The inverse of ``dataclasses.asdict``.

        Raises:
            DataError: a key is missing or unknown, or a value has the wrong type.
        """
        known = {entry.name for entry in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            raise DataError(f"parity: wants entries with the keys {sorted(known)}, got {values!r}")
        try:
            return cls(
                runtime=str(values["runtime"]),
                precision=str(values["precision"]),
                cosine=float(values["cosine"]),
                recall_at_1=float(values["recall_at_1"]),
                recall_change=float(values["recall_change"]),
                images=int(values["images"]),
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"parity: {dict(values)} does not hold what it should: {error}") from error


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
            two students compare only where this is equal. Calibration and parity are not part of it.
        schema: of the artefact.
        parity: how near each runtime came to the checkpoint when it was exported; empty where it was not measured.
    """

    name: str
    method: str
    descriptor_dim: int
    preprocess: Preprocess
    training_run: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    fingerprint: str = ""
    schema: int = SCHEMA
    parity: tuple[Parity, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {
            "schema": self.schema,
            "name": self.name,
            "method": self.method,
            "descriptor_dim": self.descriptor_dim,
            "preprocess": self.preprocess.to_dict(),
            "training_run": self.training_run,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "fingerprint": self.fingerprint,
        }
        if self.schema > 1:
            values["parity"] = [asdict(entry) for entry in self.parity]
        return values

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
        if schema > 1:
            types["parity"] = list
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
            parity=tuple(Parity.from_dict(entry) for entry in values.get("parity", [])),
        )
