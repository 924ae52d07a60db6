# The robot's half on a desktop or server, with or without an NVIDIA GPU, on ROS 2 Jazzy.
#
#   docker build -f docs/docker/desktop.Dockerfile -t vpr_kd_ros .
#   docker run --rm --net host --ipc host -v $PWD:/data -v vpr_cache:/root/.cache vpr_kd_ros \
#       ros2 run vpr_kd_ros localizer --ros-args -p student:=/data/student.pt2 -p map:=/data/town_map
#
# With a GPU: --gpus all (NVIDIA Container Toolkit), -p device:=cuda. The volume keeps engines and choices over restarts.
FROM ros:jazzy-ros-base

RUN apt-get update && apt-get install -y --no-install-recommends \
        python3-venv python3-colcon-common-extensions ros-jazzy-cv-bridge ros-jazzy-sensor-msgs-py \
        ros-jazzy-rosbag2-storage-mcap ros-jazzy-tf2-ros ros-jazzy-visualization-msgs ros-jazzy-diagnostic-msgs \
    && rm -rf /var/lib/apt/lists/*

# ROS 2's Python packages are the system's; what is newer than apt's lies in front of them.
RUN python3 -m venv --system-site-packages /opt/vpr
ENV PATH=/opt/vpr/bin:$PATH

WORKDIR /ws/src/vpr_kd_ros
COPY requirements/runtime.txt requirements/
RUN pip install --no-cache-dir -r requirements/runtime.txt

# TensorRT is not on PyPI. Where it is wanted, its packages come from NVIDIA's index:
#   docker build --build-arg TENSORRT="tensorrt onnx==1.23.2" ...
ARG TENSORRT=""
RUN if [ -n "$TENSORRT" ]; then pip install --no-cache-dir --extra-index-url https://pypi.nvidia.com $TENSORRT; fi

COPY . .
# Run by the venv's Python, colcon writes that path into the executables, so that they find the venv's packages.
RUN cd /ws && . /opt/ros/jazzy/setup.sh && python $(command -v colcon) build --packages-select vpr_kd_ros
RUN printf '#!/bin/bash\nset -e\nsource /ws/install/setup.bash\nexec "$@"\n' > /entrypoint.sh && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["bash"]
