"""What the README says of installing on a robot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
# What colcon installs from.
SOURCES = ("vpr_kd_ros", "launch", "config", "resource", "package.xml", "setup.py", "setup.cfg")


def pins(name: str, machine: str = "x86_64") -> dict[str, str]:
    """Package to version of a file of ``requirements/``, on Ubuntu 22.04."""
    lines = (REPOSITORY / "requirements" / name).read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    there = {"python_version": "3.10", "platform_machine": machine}
    return {item.name: str(item.specifier) for item in wanted if item.marker is None or item.marker.evaluate(there)}


def install_commands() -> str:
    """The block of the README that installs on a robot, by its heading sentence."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = re.search(r"Install once on the robot.*?```\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_humble_has_the_packages_of_the_runtime_for_numpy_1() -> None:
    humble, runtime = pins("humble.txt"), pins("runtime.txt")
    assert humble.pop("numpy") == "==1.26.4"
    # Theirs are apt's; the last is for TensorRT's half precision.
    for name in ("numpy", "opencv-python", "PyYAML"):
        runtime.pop(name)
    assert humble.pop("onnx") == pins("training.txt")["onnx"]
    assert humble == runtime
    assert pins("humble.txt", "aarch64")["torch"] == "==2.8.0"


def test_the_files_that_it_installs_from_are_there() -> None:
    files = re.findall(r"requirements/\w+\.txt", install_commands())
    assert len(files) == 2
    assert all((REPOSITORY / file).is_file() for file in files)


@pytest.mark.skipif(shutil.which("colcon") is None, reason="colcon is not installed")
def test_the_executables_run_by_the_python_of_the_environment(tmp_path: Path) -> None:
    """That of the system, which colcon itself runs by, has no torch."""
    source = tmp_path / "ws" / "src" / "vpr_kd_ros"
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy2
        source.mkdir(parents=True, exist_ok=True)
        copy(REPOSITORY / name, source / name)
    environment = tmp_path / "vpr"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    # In place of what the environment would see of the system, and of what pip would install.
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "system.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    (build,) = [line for line in install_commands().splitlines() if "colcon)" in line]
    script = f"source {environment}/bin/activate && {build} && python -c 'import vpr_kd_ros as v; print(v.__file__)'"
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path / "ws", env=given, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    installed = tmp_path / "ws" / "install" / "vpr_kd_ros"
    assert done.stdout.splitlines()[-1].startswith(str(installed))
    for name in ("localizer", "mapper", "recorder", "replay", "map_tool", "build_engine"):
        executable = installed / "lib" / "vpr_kd_ros" / name
        assert executable.read_text(encoding="utf-8").startswith(f"#!{environment}/bin/python")
