# make demo: the whole mission on the simulated town.   make test: build, test, results.
# Both set up what they need in .venv on their first call (some minutes) and start in seconds afterwards.
# make bench: all benchmarks of speed and memory, to benchmarks/results/; it wants the machine alone.
# make minkowski: build MinkowskiEngine into .venv, which nothing needs; its kernels are an alternative to our own.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv

# Where apt's ROS 2 is sourced it is used, through the system's site-packages; elsewhere its PyPI wheels are installed.
ifdef ROS_DISTRO
ROS_REQUIREMENTS :=
VENV_OPTIONS := --system-site-packages
else
ROS_REQUIREMENTS := -r requirements/ros.txt
VENV_OPTIONS :=
endif

ENVIRONMENT := source $(VENV)/bin/activate && export AMENT_PREFIX_PATH="$${AMENT_PREFIX_PATH:-$(CURDIR)/$(VENV)}"

MINKOWSKI_PACKAGES := g++ libopenblas-dev
OPENBLAS_INCLUDE = /usr/include/$$(gcc -print-multiarch)/openblas-pthread
COMPILER_READY = command -v g++ > /dev/null && test -e "$(OPENBLAS_INCLUDE)/cblas.h"

.PHONY: demo test lint bench setup minkowski clean

demo: $(VENV)/.ready
	$(ENVIRONMENT) && python -m training demo --out out/demo

test: $(VENV)/.ready
	$(ENVIRONMENT) && colcon build --symlink-install
	$(ENVIRONMENT) && source install/setup.bash && colcon test --event-handlers console_direct+ --return-code-on-test-failure; \
	status=$$?; colcon test-result --verbose && exit $$status

lint: $(VENV)/.ready
	$(ENVIRONMENT) && ruff check . && ruff format --check . && mypy

bench: $(VENV)/.ready
	$(ENVIRONMENT) && python benchmarks/run.py

setup: $(VENV)/.ready

$(VENV)/.ready: requirements/runtime.txt requirements/training.txt requirements/test.txt requirements/ros.txt
	@echo "Setting up $(VENV): about 7 GB and some minutes, once."
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	$(VENV)/bin/python -m pip install --upgrade pip wheel
	$(VENV)/bin/python -m pip install -r requirements/test.txt $(ROS_REQUIREMENTS)
	touch $@

# Its setup.py calls the pip on the PATH and wants a C++17 compiler and OpenBLAS; 16 minutes of one processor, once.
minkowski: $(VENV)/.minkowski

$(VENV)/.minkowski: $(VENV)/.ready
	@$(COMPILER_READY) || { test $$(id -u) = 0 && command -v apt-get > /dev/null && \
	    apt-get update && apt-get install -y --no-install-recommends $(MINKOWSKI_PACKAGES); } || \
	    { echo "MinkowskiEngine cannot be built: as root, apt-get install $(MINKOWSKI_PACKAGES)" >&2; exit 1; }
	source $(VENV)/bin/activate && MAX_JOBS=$$(nproc) pip install MinkowskiEngine==0.5.4 --no-build-isolation \
	    "--config-settings=--global-option=--cpu_only --blas=openblas --blas_include_dirs=$(OPENBLAS_INCLUDE)"
	$(VENV)/bin/python -c "from training.models.minkowski import import_minkowski; import_minkowski()"
	touch $@

clean:
	rm -rf build install log out
