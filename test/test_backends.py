"""Runtimes that carry a student: what they answer, which one is taken, and what is said where one cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from support.networks import save_both
from support.tiny import TINY_PREPROCESS, TinyNet, export_tiny, picture, save_tiny_student
from training.onnx_model import to_onnx
from vpr_kd_ros import build_engine
from vpr_kd_ros.backends import choice, engines, tensorrt_backend, torch_tensorrt_backend
from vpr_kd_ros.backends.choice import Runtime, Wanted, open_backend
from vpr_kd_ros.backends.devices import cpu_name, driver_version, physical_cores
from vpr_kd_ros.backends.half import to_half
from vpr_kd_ros.backends.onnx_backend import OnnxBackend
from vpr_kd_ros.errors import ConfigError, DataError, MissingDependencyError
from vpr_kd_ros.student import Student
from vpr_kd_ros.student_file import StudentFile

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a CUDA device")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_both(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def file(both: tuple[Path, Path]) -> StudentFile:
    return StudentFile.open(both[0])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vpr_kd_ros"


class Heard(list[str]):
    """Collects notices."""

    def __call__(self, text: str) -> None:
        self.append(text)


# --- what they answer ------------------------------------------------------------------------------------------------


def test_onnxruntime_describes_as_torch_does_in_any_batch(both: tuple[Path, Path]) -> None:
    images = [picture(i, 50 + i, 70) for i in range(35)]
    wanted = Student.load(both[0], backend="torch").describe(images)
    student = Student.load(both[0], backend="onnxruntime", threads=1)
    np.testing.assert_allclose(student.describe(images), wanted, atol=2e-6)
    for i in (0, 34):
        np.testing.assert_allclose(student.describe([images[i]])[0], wanted[i], atol=2e-6)
    assert student.runtime == "onnxruntime on cpu, fp32"


def test_a_batch_that_does_not_lie_in_order_is_read_right(file: StudentFile) -> None:
    assert file.onnx is not None
    backend = OnnxBackend(file.path, file.onnx, file.metadata)
    batch = torch.rand(2, TINY_PREPROCESS.height, TINY_PREPROCESS.width, 3).permute(0, 3, 1, 2)
    np.testing.assert_allclose(backend.describe(batch), TinyNet()(batch).detach(), atol=1e-5)


def test_the_threads_of_onnxruntime_may_run_anywhere_and_sleep_between_images(file: StudentFile) -> None:
    """Pinned to a core, one would wait there for whatever else runs; spinning, they would hold every core."""
    assert file.onnx is not None
    there = set(os.listdir("/proc/self/task"))
    backend = OnnxBackend(file.path, file.onnx, file.metadata)
    two = OnnxBackend(file.path, file.onnx, file.metadata, threads=2)
    threads = set(os.listdir("/proc/self/task")) - there
    assert len(threads) >= physical_cores()
    assert {frozenset(os.sched_getaffinity(int(thread))) for thread in threads} == {frozenset(os.sched_getaffinity(0))}
    image = torch.zeros(1, 3, TINY_PREPROCESS.height, TINY_PREPROCESS.width)
    np.testing.assert_array_equal(two.describe(image), backend.describe(image))
    resting = []
    for _ in range(5):
        two.describe(image)
        began = time.process_time()
        time.sleep(0.1)
        resting.append(time.process_time() - began)
    assert min(resting) < 0.01


def test_an_onnx_model_that_is_not_what_the_metadata_says(file: StudentFile) -> None:
    assert file.onnx is not None
    small = replace(file.metadata, preprocess=replace(TINY_PREPROCESS, height=31))
    with pytest.raises(DataError, match="input"):
        OnnxBackend(file.path, file.onnx, small)
    with pytest.raises(DataError, match="output"):
        OnnxBackend(file.path, file.onnx, replace(file.metadata, descriptor_dim=3))
    with pytest.raises(DataError, match="cannot read"):
        OnnxBackend(file.path, file.onnx[:500], file.metadata)
    with pytest.raises(ConfigError, match="threads"):
        OnnxBackend(file.path, file.onnx, file.metadata, threads=0)


def test_onnxruntime_reports_to_nobody(both: tuple[Path, Path], tmp_path: Path) -> None:
    """Left to itself it makes a folder for its device identifier in the user's cache, and a connection."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "elsewhere")
    code = "import sys; from vpr_kd_ros.student import Student; Student.load(sys.argv[1], backend='onnxruntime')"
    subprocess.run(
        [sys.executable, "-c", code, str(both[1])], check=True, env=environment, cwd=Path(__file__).parents[1]
    )
    assert not (tmp_path / "elsewhere" / "Microsoft").exists()


# --- half precision --------------------------------------------------------------------------------------------------


def test_the_half_graph_computes_in_float16_and_answers_in_float32() -> None:
    program = export_tiny()
    half = to_half(to_onnx(program))
    model = onnx.load_model_from_string(half)
    onnx.checker.check_model(model, full_check=True)
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16}
    batch = torch.stack([TINY_PREPROCESS(picture(i)) for i in range(3)])
    # An independent interpreter, which rounds after every operator.
    rows = ReferenceEvaluator(model).run(None, {"images": batch.numpy()})[0]
    wanted = TinyNet()(batch).detach().numpy()
    assert rows.dtype == np.float32
    error = np.abs(rows - wanted).max() / np.abs(wanted).max()
    assert 1e-6 < error < 5e-3


class Cubes(torch.nn.Module):
    """GeM of features of about 60: their cubes are beyond float16."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 16, 1)
        torch.nn.init.constant_(self.convolution.bias, 60.0)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.convolution(images)
        pooled: torch.Tensor = features.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
        return pooled


def test_what_overflows_float16_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    net = Cubes()
    half = onnx.load_model_from_string(to_half(to_onnx(export_tiny(net))))
    batch = torch.stack([TINY_PREPROCESS(picture(i)) for i in range(2)])
    rows = ReferenceEvaluator(half).run(None, {"images": batch.numpy()})[0]
    np.testing.assert_allclose(rows, net(batch).detach().numpy(), rtol=2e-3)


def test_weights_beyond_float16_become_its_largest() -> None:
    net = TinyNet()
    net.projection.data[0, 0] = 1e6
    half = onnx.load_model_from_string(to_half(to_onnx(export_tiny(net))))
    assert all(np.isfinite(onnx.numpy_helper.to_array(tensor)).all() for tensor in half.graph.initializer)


def test_a_graph_that_branches_is_not_halved() -> None:
    from test_onnx_file import in_a_branch

    with pytest.raises(DataError, match="branches"):
        to_half(in_a_branch().SerializeToString())


def test_without_the_onnx_package_half_precision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="pip install onnx"):
        to_half(b"")


# --- which one is taken ----------------------------------------------------------------------------------------------


def test_auto_measures_once_and_says_what_it_took(file: StudentFile, cache: Path) -> None:
    heard = Heard()
    _, runtime = open_backend(file, Wanted(threads=1), heard)
    assert len(heard) == 1
    assert runtime in heard[0]
    assert "ms an image" in heard[0]
    again = Heard()
    assert open_backend(file, Wanted(threads=1), again)[1] == runtime
    assert "measured earlier" in again[0]
    # Other threads are another question.
    other = Heard()
    open_backend(file, Wanted(threads=2), other)
    assert "earlier" not in other[0]
    torch.set_num_threads(1)


class Sleeper:
    """A runtime that takes its time."""

    device = CPU

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        import time

        time.sleep(self.seconds)
        return torch.zeros(len(batch), 16)


@pytest.mark.parametrize("fast", ["torch", "onnxruntime"])
def test_auto_takes_the_faster(file: StudentFile, monkeypatch: pytest.MonkeyPatch, fast: str) -> None:
    made: list[str] = []

    def opened(self: Runtime, *_: object) -> Sleeper:
        made.append(self.backend)
        return Sleeper(0.001 if self.backend == fast else 0.03)

    monkeypatch.setattr(Runtime, "open", opened)
    assert open_backend(file, Wanted(), Heard())[1].startswith(fast)
    assert sorted(made) == ["onnxruntime", "torch"]
    assert open_backend(file, Wanted(), Heard())[1].startswith(fast)
    assert made[2:] == [fast], "the choice is remembered: the other one need not be loaded"


def test_a_choice_that_no_longer_runs_is_made_again(file: StudentFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "open", lambda self, *_: Sleeper(0.0 if self.backend == "onnxruntime" else 0.02))
    assert open_backend(file, Wanted(), Heard())[1].startswith("onnxruntime")

    def broken(self: Runtime, *_: object) -> Sleeper:
        if self.backend == "onnxruntime":
            raise MissingDependencyError("onnxruntime is not installed")
        return Sleeper(0.0)

    monkeypatch.setattr(Runtime, "open", broken)
    heard = Heard()
    assert open_backend(file, Wanted(), heard)[1].startswith("torch")
    assert "no longer runs" in heard[0]
    assert any("not installed" in text for text in heard[1:])


def test_a_damaged_choice_and_a_cache_that_cannot_be_written_cost_a_measurement(file: StudentFile, cache: Path) -> None:
    open_backend(file, Wanted(), Heard())
    (content,) = cache.glob("choice-*/content")
    content.write_bytes(b'{"backend": "torch"')
    heard = Heard()
    open_backend(file, Wanted(), heard)
    assert "measured earlier" not in heard[0]
    for path in sorted(cache.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    heard = Heard()
    open_backend(file, Wanted(), heard)
    assert "not kept" in heard[0]


def test_an_artefact_without_onnx_runs_in_torch_and_says_why(tiny_student: Path) -> None:
    heard = Heard()
    assert Student.load(tiny_student, notice=heard).runtime == "torch on cpu, fp32"
    assert "holds no ONNX model; export it again" in heard[0]
    with pytest.raises(ConfigError, match="holds no ONNX model"):
        Student.load(tiny_student, backend="onnxruntime")


def test_an_onnx_file_runs_without_torchs_archive(both: tuple[Path, Path]) -> None:
    heard = Heard()
    assert Student.load(both[1], notice=heard).runtime == "onnxruntime on cpu, fp32"
    with pytest.raises(ConfigError, match=r"give the \.pt2 file"):
        Student.load(both[1], backend="torch")


def test_the_first_of_several_that_runs_is_taken_and_the_others_are_told(both: tuple[Path, Path]) -> None:
    heard = Heard()
    student = Student.load(both[1], backend="torch, onnxruntime", notice=heard)
    assert student.runtime == "onnxruntime on cpu, fp32"
    assert "torch on cpu" in heard[0]
    silent = Heard()
    Student.load(both[0], backend="torch,onnxruntime", notice=silent)
    assert silent == []


def test_a_file_that_is_not_in_order_is_no_reason_to_take_another_runtime(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise DataError("refused, it holds pickled weights")

    monkeypatch.setattr("vpr_kd_ros.artefact.check_inert", refused)
    for backend in ("auto", "torch,onnxruntime"):
        with pytest.raises(DataError, match="pickled"):
            Student.load(both[0], backend=backend, notice=Heard())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensort"}, "did you mean 'tensorrt'"),
        ({"backend": "auto,torch"}, "'auto' is none of"),
        ({"backend": ""}, "backend"),
        ({"precision": "fp8"}, "precision"),
        ({"device": "tpu"}, "device"),
        ({"precision": "fp16"}, "needs a CUDA device"),
        ({"precision": "fp16", "backend": "onnxruntime"}, "needs a CUDA device"),
    ],
)
def test_options_that_are_wrong(both: tuple[Path, Path], options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Student.load(both[0], **options, notice=Heard())  # type: ignore[arg-type]


def test_half_precision_that_was_never_compared_is_told(tmp_path: Path) -> None:
    save_tiny_student(tmp_path / "s.pt2")
    heard = Heard()
    with pytest.raises(ConfigError):
        Student.load(tmp_path / "s.pt2", precision="fp16", notice=heard)
    assert "not compared with its checkpoint" in heard[0]


# --- without a GPU, without TensorRT ---------------------------------------------------------------------------------


@without_gpu
def test_without_a_gpu_tensorrt_is_refused_and_device_auto_is_the_cpu(both: tuple[Path, Path]) -> None:
    for backend in ("tensorrt", "torch-tensorrt"):
        for device in ("cpu", "auto"):
            with pytest.raises(ConfigError, match="CUDA"):
                Student.load(both[0], backend=backend, device=device, notice=Heard())
    assert "on cpu" in Student.load(both[0], device="auto", notice=Heard()).runtime
    heard = Heard()
    Student.load(both[0], device="auto", backend="tensorrt,onnxruntime", notice=heard)
    assert "needs a CUDA device" in heard[0]


def test_tensorrt_that_is_missing_or_too_old_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="not installed"):
        tensorrt_backend.import_tensorrt(CUDA)
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="8.6.2"))
    with pytest.raises(ConfigError, match=r"8\.6\.2 is too old"):
        tensorrt_backend.import_tensorrt(CUDA)
    new = types.SimpleNamespace(__version__="10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", new)
    assert tensorrt_backend.import_tensorrt(CUDA) is new


def test_torch_tensorrt_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="torch-tensorrt"):
        torch_tensorrt_backend.require_torch_tensorrt(CUDA)


def test_an_engines_key_changes_with_all_that_it_depends_on(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(
        student: Path, precision: str = "fp16", version: str = "10.3.0", gpu: str = "Orin", driver: str = "540"
    ) -> Any:
        monkeypatch.setattr(engines, "gpu_name", lambda device: gpu)
        monkeypatch.setattr(engines, "driver_version", lambda: driver)
        return tensorrt_backend.key_of(StudentFile.open(student), CUDA, precision, version)

    folder = tmp_path / "other"
    folder.mkdir()
    other = save_both(folder, seed=1)
    names = {
        key(both[0]).folder_name,
        key(both[0], precision="fp32").folder_name,
        key(both[0], version="10.13.0").folder_name,
        key(both[0], gpu="Thor").folder_name,
        key(both[0], driver="580").folder_name,
        key(other[0]).folder_name,
    }
    assert len(names) == 6
    assert key(both[0]) == key(both[1]), "the .onnx and the .pt2 share their engine"
    assert key(both[0]).prefix == key(both[0], driver="580", version="10.13.0").prefix
    assert key(both[0]).prefix != key(both[0], gpu="Thor").prefix


def test_the_machine_is_named() -> None:
    assert f"{len(os.sched_getaffinity(0))} cores" in cpu_name()
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
    assert driver_version()
    assert choice.library_version("torch") == torch.__version__.split("+")[0]
    assert choice.library_version("no-such-package") == "none"


# --- the command -----------------------------------------------------------------------------------------------------


def test_build_engine_prepares_the_machine(
    both: tuple[Path, Path], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_engine.main([str(both[0]), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "ms an image" in out
    assert str(cache) in out
    heard = Heard()
    Student.load(both[0], threads=1, notice=heard)
    assert "measured earlier" in heard[0], "the node finds what the command measured"
    assert build_engine.main([str(both[0]), "--backend", "nothing"]) == 1
    assert "build_engine: backend" in capsys.readouterr().err
