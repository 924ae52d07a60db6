"""Commands and nodes as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vpr_kd_ros.errors import VprError

REPOSITORY = Path(__file__).resolve().parents[2]
STOP_S = 60.0


class StepError(VprError):
    """A process of the demo failed; the message holds the end of its output."""


def ros_environment() -> dict[str, str]:
    """Environment of nodes that talk to each other on this machine and to nobody else.

    What the caller has set stays as it is.
    """
    ours = {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(REPOSITORY / "config" / "fastdds.xml"),
    }
    return {**ours, **os.environ}


def run_command(module: str, arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run ``python -m module arguments`` to its end; its progress goes to this process's terminal.

    Raises:
        StepError: it ended with an error.
    """
    command = [sys.executable, "-m", module, *arguments]
    print(f"$ python -m {module} {' '.join(arguments)}", flush=True)
    result = subprocess.run(command, cwd=REPOSITORY, env=environment)
    if result.returncode:
        raise StepError(f"python -m {module} {arguments[0] if arguments else ''} ended with status {result.returncode}")


def run_together(commands: Mapping[str, Sequence[str]], logs: Path) -> None:
    """Run ``python -m training`` several times side by side, each on its share of the processors.

    Args:
        commands: name to arguments; the first one's progress goes to this process's terminal, the others' to logs.
        logs: folder for ``NAME.log``.

    Raises:
        StepError: one ended with an error; the others were stopped.
    """
    threads = str(max(1, (os.cpu_count() or 1) // len(commands)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for number, (name, arguments) in enumerate(commands.items()):
            log = logs / f"{name}.log"
            print(
                f"$ python -m training {' '.join(arguments)}" + (f"   (output in {log})" if number else ""), flush=True
            )
            with log.open("wb") as output:
                running[name] = subprocess.Popen(
                    [sys.executable, "-m", "training", *arguments],
                    cwd=REPOSITORY,
                    env=environment,
                    stdout=output if number else None,
                    stderr=subprocess.STDOUT if number else None,
                )
        for name, process in running.items():
            if process.wait():
                output_end = f":\n{_tail(logs / f'{name}.log')}"
                raise StepError(f"{name} ended with status {process.returncode}{output_end}")
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
                process.wait()


@contextmanager
def node(module: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run ``python -m module arguments`` beside this process; it is asked to end (SIGINT) when the block is left.

    Args:
        module: to run.
        arguments: of its command line.
        environment: see ``ros_environment``.
        log: file for its output.

    Raises:
        StepError: it ended by itself before the block was left, or with an error, or did not end when asked.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"& python -m {module} {' '.join(arguments)}   (output in {log})", flush=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
            if process.poll() is not None:
                raise StepError(f"{module} ended too early with status {process.returncode}:\n{_tail(log)}")
        finally:
            _stop(process, module, log)
    if process.returncode:
        raise StepError(f"{module} ended with status {process.returncode}:\n{_tail(log)}")


def parameters(**values: str | float | bool | Path) -> list[str]:
    """ROS arguments that set parameters."""
    result = ["--ros-args"]
    for name, value in values.items():
        result += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
    return result


def _stop(process: subprocess.Popen[bytes], module: str, log: Path) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise StepError(f"{module} did not end within {STOP_S:g} s of SIGINT:\n{_tail(log)}") from None


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
