"""The student as a torch.export program: what it must map, and its fingerprint."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from vpr_kd_ros.backends import UnreadableError
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student_metadata import StudentMetadata


def fingerprint(exported: ExportedProgram, preprocess: Preprocess) -> str:
    """SHA-256, hexadecimal, over the pre-processing and each weight's name, dtype, shape and bytes, sorted by name."""
    digest = hashlib.sha256(json.dumps(preprocess.to_dict(), sort_keys=True).encode())
    tensors = {**exported.state_dict, **exported.constants}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_program(path: Path, archive: bytes) -> ExportedProgram:
    """The program in verified bytes; reading the file anew would leave time to change it.

    Raises:
        UnreadableError: this torch cannot read it.
    """
    try:
        return torch.export.load(io.BytesIO(archive))
    except Exception as error:  # torch raises what it likes: RuntimeError, AssertionError, SpecViolationError, KeyError
        raise UnreadableError(
            f"{path}: torch {torch.__version__} cannot read it ({error}); export it again with this torch, from a "
            f"model without autocast regions, or give the .onnx file that was exported beside it"
        ) from error


def check_signature(path: Path, exported: ExportedProgram, metadata: StudentMetadata) -> None:
    """Refuse a program that does not map float32 (B, 3, height, width), any B, to float32 (B, D).

    Raises:
        DataError: it maps something else.
    """
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


def without_traces(exported: ExportedProgram) -> ExportedProgram:
    """A copy without sample inputs, which torch would unpickle, and without the exporting machine's file names."""
    bare = copy.deepcopy(exported)
    bare.example_inputs = None
    for module in bare.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return bare
