"""Student artefacts: what they describe, what they carry, and what is refused before torch reads it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim, ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from support.tiny import TINY_DIM, TINY_PREPROCESS, TinyNet, export_tiny, picture, save_tiny_student
from vpr_kd_ros.artefact import check_inert, seal
from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.program import fingerprint
from vpr_kd_ros.student import MAX_BATCH, SCHEMA, Student, StudentMetadata, save_student

Members = dict[str, bytes]
METADATA = "extra/student.json"
PROGRAM = "models/model.json"


def members(path: Path) -> Members:
    reader = PT2ArchiveReader(io.BytesIO(path.read_bytes()))
    return {name: reader.read_bytes(name) for name in reader.get_file_names()}


def write_sealed(path: Path, content: Members) -> Path:
    """What somebody who edits an artefact and seals it again would write."""
    buffer = io.BytesIO()
    writer = PT2ArchiveWriter(buffer)
    for name, data in content.items():
        if name not in (".data/version", ".data/serialization_id", "byteorder"):  # the writer adds these itself
            writer.write_bytes(name, data)
    writer.close()
    path.write_bytes(seal(buffer.getvalue()))
    return path


def edited_json(data: bytes, edit: Callable[[Any], None]) -> bytes:
    values = json.loads(data)
    edit(values)
    return json.dumps(values).encode()


def test_describes_as_the_network_does(tiny_student: Path) -> None:
    student = Student.load(tiny_student, threads=1)
    images = [picture(i, height, width) for i, (height, width) in enumerate([(60, 90), (32, 48), (200, 31), (24, 24)])]
    images *= MAX_BATCH // 4 + 2  # more than one batch
    with torch.no_grad():
        raw = TinyNet()(torch.stack([TINY_PREPROCESS(image) for image in images])).numpy().astype(np.float64)
    wanted = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    found = student.describe(images)
    assert found.shape == (len(images), TINY_DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(student.describe(images[2:3]), found[2:3], atol=1e-6)
    assert student.describe([]).shape == (0, TINY_DIM)


def test_pictures_have_different_descriptors(tiny_student: Path) -> None:
    descriptors = Student.load(tiny_student).describe([picture(i) for i in range(20)])
    products = descriptors @ descriptors.T
    assert products[~np.eye(20, dtype=bool)].max() < 0.97


def test_metadata_survives(tmp_path: Path) -> None:
    calibration = Calibration(-3.0, 5.5, 0.25, 12.0, 80, 20)
    saved = save_tiny_student(tmp_path / "deep" / "s.pt2", calibration=calibration)
    loaded = Student.load(tmp_path / "deep" / "s.pt2").metadata
    assert loaded == saved
    assert loaded.calibration == calibration
    assert (loaded.name, loaded.descriptor_dim, loaded.preprocess) == ("tiny", TINY_DIM, TINY_PREPROCESS)
    assert loaded.training_run == {"seed": 0}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s.pt2"]


def test_the_fingerprint_is_of_weights_and_preprocessing() -> None:
    program = export_tiny()
    wanted = hashlib.sha256(json.dumps(TINY_PREPROCESS.to_dict(), sort_keys=True).encode())
    net = TinyNet()
    for name, shape in (("convolution", "(8, 3, 5, 5)"), ("projection", f"({TINY_DIM}, 48)"), ("scale", "(1,)")):
        wanted.update(f"\n{name} torch.float32 {shape} ".encode())
        wanted.update(net.state_dict()[name].numpy().tobytes())
    assert fingerprint(program, TINY_PREPROCESS) == wanted.hexdigest()
    net.scale += 1e-6
    assert fingerprint(export_tiny(net), TINY_PREPROCESS) != wanted.hexdigest()
    assert fingerprint(program, replace(TINY_PREPROCESS, mean=(0.5, 0.5, 0.5))) != wanted.hexdigest()


def test_a_calibration_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    bare = save_tiny_student(tmp_path / "a.pt2")
    calibrated = save_tiny_student(tmp_path / "a.pt2", calibration=Calibration(0, 1, 1, 10, 1, 1))
    assert bare.fingerprint == calibrated.fingerprint
    assert Student.load(tmp_path / "a.pt2").metadata.calibration is not None
    assert save_tiny_student(tmp_path / "b.pt2", seed=1).fingerprint != bare.fingerprint


def test_any_flipped_byte_is_refused(tmp_path: Path, tiny_student: Path) -> None:
    whole = tiny_student.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "s.pt2"
    for position in {0, len(whole) - 1, len(whole) - 80, *rng.integers(0, len(whole), 200).tolist()}:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"s\.pt2"):
            Student.load(path)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, tiny_student: Path) -> None:
    whole = tiny_student.read_bytes()
    path = tmp_path / "s.pt2"
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 91, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a student artefact"):
            Student.load(path)


class Bomb:
    """Its unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_other_files_are_refused_unread(tmp_path: Path) -> None:
    bomb = tmp_path / "went-off"
    path = tmp_path / "s.pt2"
    for content in (b"", b"hello", pickle.dumps(Bomb(bomb))):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a student artefact"):
            Student.load(path)
    torch.save({"weights": Bomb(bomb)}, path)
    with pytest.raises(DataError, match="not a student artefact"):
        Student.load(path)
    path.write_bytes(seal(path.read_bytes()))
    with pytest.raises(DataError, match="not a student artefact"):
        Student.load(path)
    torch.export.save(export_tiny(), path)
    with pytest.raises(DataError, match="not a student artefact"):
        Student.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    path.write_bytes(seal(path.read_bytes()))
    with pytest.raises(DataError, match="not a student artefact"):
        Student.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        Student.load(tmp_path / "nothing.pt2")
    with pytest.raises(DataError, match="cannot be read"):
        Student.load(tmp_path)
    assert not bomb.exists()


def pickled(content: Members, bomb: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(bomb), buffer)
    return buffer.getvalue()


def with_sample_inputs(content: Members, bomb: Path) -> None:
    content["data/sample_inputs/model.pt"] = pickled(content, bomb)


def with_pickled_weight(content: Members, bomb: Path) -> None:
    def edit(config: Any) -> None:
        config["config"]["projection"]["use_pickle"] = True

    name = "data/weights/model_weights_config.json"
    content[name] = edited_json(content[name], edit)
    where = json.loads(content[name])["config"]["projection"]["path_name"]
    content[f"data/weights/{where}"] = pickled(content, bomb)


def with_opaque_constant(content: Members, bomb: Path) -> None:
    def edit(config: Any) -> None:
        config["config"]["x"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    name = "data/constants/model_constants_config.json"
    content[name] = edited_json(content[name], edit)
    content["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(bomb))


def with_legacy_weights(content: Members, bomb: Path) -> None:
    content["data/weights/model.pt"] = pickled(content, bomb)


def with_library(content: Members, bomb: Path) -> None:
    content["data/aotinductor/model/library.so"] = b"\x7fELF"


def with_second_program(content: Members, bomb: Path) -> None:
    for name in ("models/{}.json", "data/weights/{}_weights_config.json", "data/constants/{}_constants_config.json"):
        content[name.format("other")] = content[name.format("model")]
    content["data/sample_inputs/other.pt"] = pickled(content, bomb)


def with_operator(target: str) -> Callable[[Members, Path], None]:
    def change(content: Members, bomb: Path) -> None:
        def edit(program: Any) -> None:
            program["graph_module"]["graph"]["nodes"][0]["target"] = target

        content[PROGRAM] = edited_json(content[PROGRAM], edit)

    return change


def with_expression(content: Members, bomb: Path) -> None:
    text = content[PROGRAM].decode()
    symbol = next(s for s in json.dumps(json.loads(text)).split('"') if s.startswith("Symbol("))
    content[PROGRAM] = text.replace(symbol, f"__import__('os').mkdir('{bomb}')").encode()


def with_guard(content: Members, bomb: Path) -> None:
    def edit(program: Any) -> None:
        program["guards_code"] = [f"__import__('os').mkdir('{bomb}') is None"]

    content[PROGRAM] = edited_json(content[PROGRAM], edit)


def with_enum(content: Members, bomb: Path) -> None:
    def edit(program: Any) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["in_spec"])
        spec[1]["children_spec"][1]["context"] = json.dumps([{"__enum__": True, "fqn": "antigravity:X", "name": "x"}])
        signature["in_spec"] = json.dumps(spec)

    content[PROGRAM] = edited_json(content[PROGRAM], edit)


TAMPERINGS: dict[str, Callable[[Members, Path], None]] = {
    "sample inputs": with_sample_inputs,
    "pickled weight": with_pickled_weight,
    "opaque constant": with_opaque_constant,
    "legacy weights": with_legacy_weights,
    "library": with_library,
    "second program": with_second_program,
    "torch function": with_operator("torch.hub.load"),
    "module behind torch": with_operator("torch.os.system"),
    "file operator": with_operator("torch.ops.aten.from_file.default"),
    "extension operator": with_operator("#aoti:call"),
    "expression": with_expression,
    "guard": with_guard,
    "enum": with_enum,
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_torch_would_execute_is_refused_though_the_seal_fits(
    tmp_path: Path, tiny_student: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, bomb = members(tiny_student), tmp_path / "went-off"
    TAMPERINGS[name](content, bomb)
    path = write_sealed(tmp_path / "s.pt2", content)

    def reached(*_: object, **__: object) -> ExportedProgram:
        raise AssertionError("torch was asked to load it")

    monkeypatch.setattr(torch.export, "load", reached)
    with pytest.raises(DataError, match="refused"):
        Student.load(path)
    assert not bomb.exists()


def test_the_tampering_above_is_real(tmp_path: Path, tiny_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself does execute such files: the tests above would not notice if it did not."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # torch 2.14 stumbles over its own warning
    for name in ("sample inputs", "pickled weight", "opaque constant", "expression"):
        content, bomb = members(tiny_student), tmp_path / name.replace(" ", "-")
        TAMPERINGS[name](content, bomb)
        path = write_sealed(tmp_path / "s.pt2", content)
        with contextlib.suppress(Exception):  # torch may fail, but after it did what the file told it
            torch.export.load(path)
        assert bomb.exists(), name


def test_an_untouched_archive_is_written_again_and_loads(tmp_path: Path, tiny_student: Path) -> None:
    path = write_sealed(tmp_path / "s.pt2", members(tiny_student))
    image = picture(3)
    np.testing.assert_array_equal(Student.load(path).describe([image]), Student.load(tiny_student).describe([image]))


def change_metadata(tmp_path: Path, tiny_student: Path, **changes: Any) -> Path:
    content = members(tiny_student)
    content[METADATA] = edited_json(content[METADATA], lambda values: values.update(changes))
    return write_sealed(tmp_path / "s.pt2", content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": SCHEMA + 1}, "update vpr_kd_ros"),
        ({"schema": "1"}, "schema"),
        ({"descriptor_dim": TINY_DIM + 1}, "output"),
        ({"preprocess": {**TINY_PREPROCESS.to_dict(), "height": 33}}, "input"),
        ({"preprocess": {**TINY_PREPROCESS.to_dict(), "mean": [0.4, 0.4, 0.4]}}, "fingerprint"),
        ({"preprocess": {**TINY_PREPROCESS.to_dict(), "resizer": "nearest"}}, "resizer"),
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"calibration": {"intercept": 1}}, "calibration"),
        ({"parity": [{"runtime": "torch"}]}, "parity"),
        ({"parity": "good"}, "parity"),
        ({"name": 3}, "name"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    tmp_path: Path, tiny_student: Path, changes: dict[str, Any], message: str
) -> None:
    path = change_metadata(tmp_path, tiny_student, **changes)
    with pytest.raises(DataError, match=message) as caught:
        Student.load(path)
    assert str(caught.value).count(str(path)) == 1


def test_an_artefact_of_the_first_schema_is_still_read(tmp_path: Path, tiny_student: Path) -> None:
    content = members(tiny_student)

    def older(values: dict[str, Any]) -> None:
        values["schema"] = 1
        del values["parity"]

    content[METADATA] = edited_json(content[METADATA], older)
    metadata = Student.load(write_sealed(tmp_path / "s.pt2", content)).metadata
    assert (metadata.schema, metadata.parity) == (1, ())
    assert StudentMetadata.from_dict(metadata.to_dict()) == metadata


class Static(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Two(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.mean((2, 3)), images.mean((1, 2))


def test_a_program_that_no_robot_could_use_is_not_saved(tmp_path: Path) -> None:
    metadata = StudentMetadata("s", "none", 3, Preprocess(8, 8))
    zeros = torch.zeros(2, 3, 8, 8)
    dynamic = ({0: Dim("batch", min=1)},)
    path = tmp_path / "s.pt2"
    for program, message in (
        (torch.export.export(Static(), (zeros,)), "input"),
        (torch.export.export(Static().half(), (zeros.half(),), dynamic_shapes=dynamic), "input"),
        (torch.export.export(Two(), (zeros,), dynamic_shapes=dynamic), "output"),
    ):
        with pytest.raises(DataError, match=message):
            save_student(path, program, metadata)
    assert not path.exists()
    good = torch.export.export(Static(), (zeros,), dynamic_shapes=dynamic)
    save_student(path, good, metadata)
    assert good.example_inputs is not None  # the caller's program stays as it was
    assert Student.load(path).describe([picture(0)]).shape == (1, 3)


def test_no_path_of_the_exporting_machine_is_stored(tiny_student: Path) -> None:
    here = str(Path(__file__).parent).encode()
    assert all(here not in data for data in members(tiny_student).values())


def test_check_inert_alone_accepts_what_save_writes(tiny_student: Path) -> None:
    check_inert(tiny_student, tiny_student.read_bytes())


def test_devices_and_threads_that_are_not_there(tiny_student: Path) -> None:
    for device in ("tpu", "mps", "cuda:99"):
        with pytest.raises(ConfigError, match="device"):
            Student.load(tiny_student, device=device)
    Student.load(tiny_student, threads=2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with pytest.raises(ConfigError, match="threads"):
        Student.load(tiny_student, threads=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_describes_as_the_cpu_does(tiny_student: Path) -> None:
    images = [picture(i) for i in range(5)]
    found = Student.load(tiny_student, device="cuda").describe(images)
    np.testing.assert_allclose(found, Student.load(tiny_student).describe(images), atol=1e-5)


def test_an_output_without_direction(tmp_path: Path) -> None:
    zeros = torch.zeros(2, 3, 8, 8)
    program = torch.export.export(Static(), (zeros,), dynamic_shapes=({0: Dim("batch", min=1)},))
    flat = Preprocess(8, 8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    save_student(tmp_path / "s.pt2", program, StudentMetadata("s", "none", 3, flat))
    found = Student.load(tmp_path / "s.pt2").describe([np.zeros((8, 8, 3), dtype=np.uint8)])
    np.testing.assert_array_equal(found, np.zeros((1, 3)))


def test_several_threads_may_ask_one_student(tiny_student: Path) -> None:
    student = Student.load(tiny_student)
    images = [picture(i) for i in range(8)]
    wanted = student.describe(images)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: student.describe([images[i % 8]])[0], range(200)))
    for i, row in enumerate(found):
        np.testing.assert_allclose(row, wanted[i % 8], atol=1e-6)


def test_images_that_are_no_images(tiny_student: Path) -> None:
    student = Student.load(tiny_student)
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(DataError, match="RGB"):
            student.describe([image])  # type: ignore[list-item]


def test_loading_needs_neither_training_nor_timm(tiny_student: Path) -> None:
    code = (
        "import sys; from vpr_kd_ros.student import Student; Student.load(sys.argv[1]);"
        "print([m for m in ('training', 'timm', 'torchvision', 'lightning', 'rclpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_student)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"
