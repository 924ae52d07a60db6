"""From a torch.export program to the ONNX model that robots run."""

from __future__ import annotations

import logging
import warnings

import torch
from torch.export import ExportedProgram

OPSET = 20
"""The newest that the oldest TensorRT which students run on (10.3, JetPack 6) reads."""


def to_onnx(program: ExportedProgram) -> bytes:
    """A serialised ONNX model of a program that maps float32 (B, 3, H, W), dynamic B, to float32 (B, D).

    Input and output are called ``images`` and ``descriptors``. What the exporter notes about this machine is left out.
    """
    shape = next(
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    # Two images, for the exporter takes a batch of one for a constant.
    images = torch.zeros(2, *(int(size) for size in shape[1:]))
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program, (images,), dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                input_names=["images"], output_names=["descriptors"],
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert exported is not None
    model = exported.model_proto
    # Notes on the source code, with file names.
    for message in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        message.doc_string = ""
        del message.metadata_props[:]
    del model.graph.value_info[:]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return bytes(model.SerializeToString())
