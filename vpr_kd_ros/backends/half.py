"""A student's ONNX model in half precision where that is safe, with the types written into the graph.

TensorRT takes the types of a network from the network (always from version 11 on). Convolutions and matrix products
compute in float16, and what lies between them stays in float16; powers, sums, means, norms, softmax and divisions
compute in float32: the cube in GeM overflows float16 for features above about 40. Inputs and outputs stay float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vpr_kd_ros.errors import DataError, MissingDependencyError

HALF = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators whose arithmetic is worth halving."""
EITHER = frozenset(
    {"Add", "Clip", "Concat", "Expand", "Flatten", "Gelu", "Identity", "MaxPool", "Mul", "Relu", "Reshape", "Slice"}
    | {"Squeeze", "Sub", "Transpose", "Unsqueeze"}
)
"""Operators that compute in float16 where all that comes in from the network is float16 already."""
LARGEST = 65504.0


def to_half(model: bytes) -> bytes:
    """A serialised float32 model as one of mixed precision, with float32 inputs and outputs.

    Raises:
        MissingDependencyError: the onnx package is not installed.
        DataError: the model has branches or loops, which no student has.
    """
    try:
        import onnx
    except ImportError:
        raise MissingDependencyError("fp16 with TensorRT needs the onnx package: pip install onnx") from None
    converted = onnx.load_model_from_string(model)
    _Converter(onnx, converted.graph).run()
    del converted.metadata_props[:]
    return bytes(converted.SerializeToString())


class _Converter:
    """Rewrites one graph, node by node in its (topological) order."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self._onnx = onnx
        self._graph = graph
        self._nodes: list[Any] = []
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = set(self._weights)
        self._floats = {name for name, tensor in self._weights.items() if tensor.data_type == onnx.TensorProto.FLOAT}
        # Values that exist in float16, by the name they had in float32.
        self._half: dict[str, str] = {}
        # Values that a node computed in float16, and whose float32 form is made when somebody wants it.
        self._only_half: set[str] = set()

    def run(self) -> None:
        """Rewrite the graph in place."""
        onnx, graph = self._onnx, self._graph
        inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        self._floats |= {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        for node in graph.node:
            if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
                raise DataError(f"the ONNX model branches or loops ({node.op_type}), which no student does")
            if node.op_type == "Constant":
                self._constants.update(node.output)
            self._convert(node)
        for value in graph.output:
            self._as_full(value.name)
        used = {name for node in self._nodes for name in node.input}
        weights = [tensor for name, tensor in self._weights.items() if name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(weights)

    def _convert(self, node: Any) -> None:
        floats = [name for name in node.input if name in self._floats]
        flowing = [name for name in floats if name not in self._constants]
        half = node.op_type in HALF or (
            node.op_type in EITHER and bool(flowing) and all(name in self._only_half for name in flowing)
        )
        copy = type(node)()
        copy.CopyFrom(node)
        convert = self._as_half if half else self._as_full
        copy.input[:] = [convert(name) if name in self._floats else name for name in node.input]
        if half:
            for position, name in enumerate(node.output):
                copy.output[position] = self._half[name] = f"{name}_half"
                self._only_half.add(name)
        self._nodes.append(copy)

    def _as_half(self, name: str) -> str:
        if name in self._half:
            return self._half[name]
        half = self._half[name] = f"{name}_half"
        if name in self._weights:
            values = np.clip(self._onnx.numpy_helper.to_array(self._weights[name]), -LARGEST, LARGEST)
            self._weights[half] = self._onnx.numpy_helper.from_array(values.astype(np.float16), half)
        else:
            self._cast(name, half, self._onnx.TensorProto.FLOAT16)
        return half

    def _as_full(self, name: str) -> str:
        if name in self._only_half:
            self._cast(self._half[name], name, self._onnx.TensorProto.FLOAT)
            self._only_half.discard(name)
        return name

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(self._onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind))
