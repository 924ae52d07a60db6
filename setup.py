"""ament_python package description: installs ``vpr_kd_ros``, its launch files and its configuration."""

from glob import glob

from setuptools import find_packages, setup

NAME = "vpr_kd_ros"

setup(
    name=NAME,
    version="0.1.0",
    # Only the robot's half is installed; a top-level package called "training" does not belong in site-packages.
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (
            f"share/{NAME}/config",
            [*glob("config/*.yaml"), *glob("config/*.xml"), *glob("config/*.rviz"), *glob("config/*.json")],
        ),
    ],
    python_requires=">=3.10",
    install_requires=["setuptools"],
    # What tells colcon to run the tests with pytest.
    extras_require={"test": ["pytest"]},
    zip_safe=True,
    maintainer="vpr_kd_ros maintainers",
    maintainer_email="vpr-kd-ros@example.org",
    description="Onboard visual place recognition with a camera student that a LiDAR teacher taught.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            f"build_engine = {NAME}.build_engine:main",
            f"localizer = {NAME}.nodes.localizer:main",
            f"map_tool = {NAME}.map_tool:main",
            f"mapper = {NAME}.nodes.mapper:main",
            f"recorder = {NAME}.nodes.recorder:main",
            f"replay = {NAME}.nodes.replay:main",
        ],
    },
)
