# make demo: the whole mission on the simulated town.   make test: build, test, results.
# Both set up what they need in .venv on their first call (some minutes) and start in seconds afterwards.

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

.PHONY: demo test lint setup clean

demo: $(VENV)/.ready
	$(ENVIRONMENT) && python -m training demo --out out/demo

test: $(VENV)/.ready
	$(ENVIRONMENT) && colcon build --symlink-install
	$(ENVIRONMENT) && source install/setup.bash && colcon test --event-handlers console_direct+ --return-code-on-test-failure; \
	status=$$?; colcon test-result --verbose && exit $$status

lint: $(VENV)/.ready
	$(ENVIRONMENT) && ruff check . && ruff format --check . && mypy

setup: $(VENV)/.ready

$(VENV)/.ready: requirements/runtime.txt requirements/training.txt requirements/test.txt requirements/ros.txt
	@echo "Setting up $(VENV): about 7 GB and some minutes, once."
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	$(VENV)/bin/python -m pip install --upgrade pip wheel
	$(VENV)/bin/python -m pip install -r requirements/test.txt $(ROS_REQUIREMENTS)
	touch $@

clean:
	rm -rf build install log out
