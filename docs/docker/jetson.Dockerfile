# The robot's half on a Jetson Orin with JetPack 6 (Ubuntu 22.04, Python 3.10, CUDA 12.6, TensorRT 10.3), ROS 2 Humble.
# Build it on the Jetson:
#
#   docker build -f docs/docker/jetson.Dockerfile -t vpr_kd_ros:jetson .
#   docker run --rm --runtime nvidia --net host --ipc host -v $PWD:/data -v vpr_cache:/root/.cache vpr_kd_ros:jetson \
#       ros2 run vpr_kd_ros localizer --ros-args -p student:=/data/student.onnx -p map:=/data/town_map \
#       -p device:=cuda -p precision:=fp16 -p backend:=tensorrt
#
# The volume keeps the engine, which takes minutes to build, over restarts.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM $BASE

ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8
RUN apt-get update && apt-get install -y --no-install-recommends curl ca-certificates gnupg \
    && curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key -o /usr/share/keyrings/ros.gpg \
    && echo "deb [arch=arm64 signed-by=/usr/share/keyrings/ros.gpg] http://packages.ros.org/ros2/ubuntu jammy main" \
        > /etc/apt/sources.list.d/ros2.list \
    && apt-get update && apt-get install -y --no-install-recommends \
        python3-venv python3-libnvinfer python3-opencv python3-colcon-common-extensions ros-humble-ros-base \
        ros-humble-cv-bridge ros-humble-sensor-msgs-py ros-humble-rosbag2-storage-mcap ros-humble-tf2-ros \
        ros-humble-visualization-msgs ros-humble-diagnostic-msgs \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv --system-site-packages /opt/vpr
ENV PATH=/opt/vpr/bin:$PATH
# NumPy 1: apt's ROS 2 Humble and OpenCV are built for it. torch comes from NVIDIA's Jetson wheels: PyPI's for this CUDA
# know no Jetson. OpenCV is apt's.
WORKDIR /ws/src/vpr_kd_ros
COPY requirements/humble.txt requirements/
RUN pip install --no-cache-dir --extra-index-url https://pypi.jetson-ai-lab.io/jp6/cu126 -r requirements/humble.txt

COPY . .
RUN cd /ws && . /opt/ros/humble/setup.sh && python $(command -v colcon) build --packages-select vpr_kd_ros
RUN printf '#!/bin/bash\nset -e\nsource /ws/install/setup.bash\nexec "$@"\n' > /entrypoint.sh && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["bash"]
