"""The student as ONNX: what it carries, and what is refused before a runtime reads it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.networks import CALIBRATION, PARITY, save_both
from support.tiny import TINY_DIM, TINY_PREPROCESS, picture, save_tiny_student
from vpr_kd_ros.artefact import check_inert, seal, with_onnx
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.onnx_file import METADATA, is_sealed_onnx, read_sealed_onnx, seal_onnx
from vpr_kd_ros.student import Student
from vpr_kd_ros.student_file import StudentFile

ANYWHERE = Path("student.onnx")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_both(tmp_path_factory.mktemp("both"))


def test_both_files_are_the_same_student(both: tuple[Path, Path]) -> None:
    archive, model = (StudentFile.open(path) for path in both)
    assert archive.metadata == model.metadata
    assert archive.metadata.calibration == CALIBRATION
    assert archive.metadata.parity == PARITY
    assert archive.onnx == model.onnx == both[1].read_bytes()
    images = [picture(i) for i in range(5)]
    wanted = Student.load(both[0], backend="torch").describe(images)
    for path in both:
        np.testing.assert_allclose(Student.load(path, backend="onnxruntime").describe(images), wanted, atol=2e-6)


def test_it_is_an_onnx_model_for_every_tool(both: tuple[Path, Path]) -> None:
    model = onnx.load(both[1])
    onnx.checker.check_model(model, full_check=True)
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(stored[METADATA])["preprocess"]["height"] == TINY_PREPROCESS.height
    ends = (model.graph.input[0], model.graph.output[0])
    sizes = [[d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim] for end in ends]
    assert sizes == [["batch", 3, TINY_PREPROCESS.height, TINY_PREPROCESS.width], ["batch", TINY_DIM]]


def test_the_archive_with_a_model_in_it_is_one_that_torch_reads(both: tuple[Path, Path]) -> None:
    check_inert(both[0], both[0].read_bytes())
    assert StudentFile.open(both[0]).program() is not None


def test_no_path_of_the_exporting_machine_is_stored(both: tuple[Path, Path]) -> None:
    assert str(Path(__file__).parents[1]).encode() not in both[1].read_bytes()


def test_any_flipped_byte_and_any_missing_end_is_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    whole = both[1].read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "s.onnx"
    for position in {0, len(whole) - 1, len(whole) - 70, *rng.integers(0, len(whole), 200).tolist()}:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"s\.onnx"):
            StudentFile.open(path)
    for length in (1, 100, len(whole) - 87, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a student artefact"):
            StudentFile.open(path)


def network(*nodes: Any, initializers: Any = (), **fields: Any) -> onnx.ModelProto:
    shape = ["batch", 3]
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], **fields)


def elsewhere() -> TensorProto:
    """A weight in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "passwords"
    return tensor


def in_an_attribute() -> onnx.ModelProto:
    return network(
        helper.make_node("Constant", [], ["c"], value=elsewhere()), helper.make_node("Add", ["x", "c"], ["y"])
    )


def in_a_branch() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [elsewhere()],
    )
    condition = numpy_helper.from_array(np.array(True), "c")
    return network(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner), initializers=[condition])


def with_function() -> onnx.ModelProto:
    function = helper.make_function("mine", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [])
    return network(functions=[function])


def deep() -> onnx.ModelProto:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    return helper.make_model(graph)


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "weight elsewhere": (lambda: network(initializers=[elsewhere()]), "other files"),
    "weight elsewhere, in an attribute": (in_an_attribute, "other files"),
    "weight elsewhere, in a branch": (in_a_branch, "other files"),
    "operator of a library": (lambda: network(helper.make_node("Run", ["x"], ["y"], domain="com.evil")), "com.evil"),
    "function": (with_function, "functions"),
    "graphs without end": (deep, "deep"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_a_network_is_refused_though_the_seal_fits(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        read_sealed_onnx(ANYWHERE, seal_onnx(make().SerializeToString(), {"schema": 2}))


def test_a_plain_network_is_not_refused() -> None:
    sealed = seal_onnx(network().SerializeToString(), {"schema": 2, "name": "Zürich"})
    assert is_sealed_onnx(sealed)
    assert read_sealed_onnx(ANYWHERE, sealed) == {"schema": 2, "name": "Zürich"}


def test_random_bytes_under_a_seal_end_in_no_other_error() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 5, 40, 300):
        for _ in range(50):
            with contextlib.suppress(DataError):
                read_sealed_onnx(ANYWHERE, seal_onnx(rng.bytes(length), {}))


def test_an_archive_with_another_students_model_is_refused(both: tuple[Path, Path], tmp_path: Path) -> None:
    save_tiny_student(tmp_path / "bare.pt2", seed=1)
    model = StudentFile.open(both[1]).onnx
    assert model is not None
    path = tmp_path / "s.pt2"
    path.write_bytes(seal(with_onnx(path, (tmp_path / "bare.pt2").read_bytes(), model)))
    with pytest.raises(DataError, match="another student"):
        StudentFile.open(path)


def test_reading_it_needs_no_onnx_package(both: tuple[Path, Path]) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None; from vpr_kd_ros.student import Student;"
        "print(Student.load(sys.argv[1], notice=print).runtime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(both[1])],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.splitlines()[-1] == "onnxruntime on cpu, fp32"
