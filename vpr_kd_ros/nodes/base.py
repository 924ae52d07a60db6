"""What every node here has in common: life cycle, parameters, signals, diagnostics.

Configuring validates and loads, activating subscribes, deactivating stops, cleaning up frees. With ``autostart`` a node
does the first two by itself. A node that cannot be configured says why and stays, so that it can be mended
(``ros2 param set``, then ``ros2 lifecycle set /NODE configure``).
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer

from vpr_kd_ros import parameters
from vpr_kd_ros.errors import ConfigError, VprError

P = TypeVar("P")
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
# How long a signal may wait for its answer; spinning returns at least this often, and costs a millisecond each time.
SPIN_SECONDS = 0.5


class VprNode(LifecycleNode, Generic[P]):  # type: ignore[misc]  # rclpy has no types
    """A life-cycle node whose parameters are a dataclass.

    A node defines ``configure``, ``activate``, ``deactivate``, ``cleanup`` and ``diagnose``; ``deactivate`` and
    ``cleanup`` undo what the first two did as far as it was done, and may be called twice.

    A parameter that is set while the node runs is checked at once. Those of ``live`` take effect then; the others are
    refused, because they would silently wait for the next ``configure``.

    Attributes:
        config: the parameters, read when the node is configured.
        exit_code: what the process returns.
        live: names of the parameters that may be set while the node is configured.
    """

    live: tuple[str, ...] = ()

    def __init__(self, name: str, config_type: type[P]) -> None:
        super().__init__(name)
        self._config_type = config_type
        self.config: P
        self.exit_code = 0
        self.stop_requested = False
        self.declare_parameter("autostart", True)
        parameters.declare(self, config_type)
        parameters.warn_of_unknown(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._guard_change_state()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_steady_timer(1.0, self._publish_diagnostics)

    # --- what a node defines -----------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Validate the parameters and load; what is wrong is raised."""

    def activate(self) -> None:
        """Subscribe and start."""

    def deactivate(self) -> None:
        """Stop what ``activate`` started."""

    def cleanup(self) -> None:
        """Free what ``configure`` loaded; or raise a VprError and free nothing, where something would be lost."""

    def rescue(self) -> None:
        """When the node ends after ``cleanup`` failed: keep elsewhere what would be lost, and free it."""

    def reconfigure(self, config: P) -> None:
        """Take over the parameters of ``live``; what is wrong is raised, and then nothing has changed."""

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Level, one line, and values of the diagnostics, once a second while active."""
        return OK, "", {}

    # --- for the nodes -----------------------------------------------------------------------------------------------

    @property
    def logger(self) -> RcutilsLogger:
        """The node's logger."""
        return self.get_logger()

    @property
    def state(self) -> str:
        """The life-cycle state: unconfigured, inactive, active, finalized."""
        return str(self._state_machine.current_state[1])

    def create_steady_timer(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """A timer of the machine's own clock: with simulated time no other fires before ``/clock`` does."""
        return self.create_timer(period_s, callback, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def request_stop(self, exit_code: int = 0) -> None:
        """End the process after this callback, everything finished as after a signal."""
        self.exit_code = exit_code
        self.stop_requested = True

    def start(self) -> bool:
        """Configure and activate where ``autostart`` says so; False when that failed."""
        if not self.get_parameter("autostart").value:
            self.logger.info("autostart is off; waiting to be configured")
            return True
        return all(
            transition() == TransitionCallbackReturn.SUCCESS
            for transition in (self.trigger_configure, self.trigger_activate)
        )

    def finish(self) -> None:
        """Go back through the states as far as the node had come; a failure on the way shows in the exit status."""
        for state, transition in (("active", self.trigger_deactivate), ("inactive", self.trigger_cleanup)):
            if self.state == state and transition() != TransitionCallbackReturn.SUCCESS:
                self.exit_code = self.exit_code or 1
        if self.state == "inactive":
            self._try("rescue", self.rescue)

    # --- the life cycle ----------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, then ``configure``; after a failure the node is unconfigured again."""
        done = self._try("configure", self._read_and_configure)
        if done != TransitionCallbackReturn.SUCCESS:
            self._try("clean up", self.cleanup)
        return done

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run ``activate``; after a failure the node is inactive again."""
        done = self._try("activate", self.activate)
        if done != TransitionCallbackReturn.SUCCESS:
            self._try("deactivate", self.deactivate)
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run ``deactivate``."""
        error = TransitionCallbackReturn.ERROR
        return self._try("deactivate", self.deactivate, refused=error, failed=error)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run ``cleanup``; where it refuses, the node stays inactive."""
        return self._try("clean up", self.cleanup, failed=TransitionCallbackReturn.ERROR)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run ``deactivate`` and ``cleanup``, from whichever state."""
        self._try("deactivate", self.deactivate)
        return self._give_up()

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an error in a transition, free everything: the node is unconfigured."""
        return self._give_up()

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            names = {field.name for field in dataclasses.fields(self._config_type)}  # type: ignore[arg-type]
            ours = {change.name: change.value for change in changes if change.name in names}
            values = {name: parameters.check(self._config_type, name, value) for name, value in ours.items()}
            if self.state in ("inactive", "active"):
                if fixed := sorted(set(values) - set(self.live)):
                    raise ConfigError(
                        f"parameter {fixed[0]!r}: it is read when the node is configured, and the node is "
                        f"{self.state}; clean it up first (now may be set: {', '.join(self.live) or 'none'})"
                    )
                if values:
                    config = dataclasses.replace(self.config, **values)  # type: ignore[type-var]
                    self.reconfigure(config)
                    self.config = config
        except VprError as error:
            self.logger.warning(f"refused: {error}")
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _read_and_configure(self) -> None:
        self.config = parameters.read(self, self._config_type)
        self.configure()

    def _give_up(self) -> TransitionCallbackReturn:
        done = self._try("clean up", self.cleanup)
        if done != TransitionCallbackReturn.SUCCESS:
            self._try("rescue", self.rescue)
        return done

    def _try(
        self,
        what: str,
        action: Callable[[], None],
        refused: TransitionCallbackReturn = TransitionCallbackReturn.FAILURE,
        failed: TransitionCallbackReturn = TransitionCallbackReturn.FAILURE,
    ) -> TransitionCallbackReturn:
        """Run a part of a transition; ``refused`` comes back after a VprError, ``failed`` after any other."""
        # rclpy swallows what a transition raises; without these lines the user would not learn why.
        try:
            action()
        except VprError as error:
            self.logger.error(f"cannot {what}: {error}")
            return refused
        except Exception:
            self.logger.error(f"cannot {what}:\n{traceback.format_exc()}")
            return failed
        return TransitionCallbackReturn.SUCCESS

    def _guard_change_state(self) -> None:
        # rclpy raises out of spin() when a transition is asked for that the state does not allow, and never answers.
        service = self._service_change_state
        change_state = service.callback

        def guarded(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            # (transition id, transition label, start id, start label, goal id, goal label)
            available = [transition[:2] for transition in self._state_machine.available_transitions]
            label, number = request.transition.label, request.transition.id
            if not any(label == name if label else number == known for known, name in available):
                self.logger.warning(
                    f"transition {label or number} refused: the node is {self.state} "
                    f"and allows {', '.join(name for _, name in available)}"
                )
                response.success = False
                return response
            return change_state(request, response)

        service.callback = guarded

    # --- diagnostics -------------------------------------------------------------------------------------------------

    def _publish_diagnostics(self) -> None:
        level, message, values = self.diagnose() if self.state == "active" else (WARN, self.state, {})
        status = DiagnosticStatus(
            level=level,
            name=f"{self.get_name()}: {type(self).__name__}",
            hardware_id=self.get_fully_qualified_name(),
            message=message or self.state,
            values=[KeyValue(key=key, value=_text(value)) for key, value in {"state": self.state, **values}.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def main(create: Callable[[], VprNode[Any]], exit_on_failure: bool = False) -> NoReturn:
    """``run`` with this process's command line, and leave the process with its status."""
    status = run(create, exit_on_failure=exit_on_failure)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is finished; torch would take seconds more to take itself down, longer than ros2 launch waits after
    # SIGINT on a busy robot, and a clean end would be reported as a death.
    os._exit(status)


def run(create: Callable[[], VprNode[Any]], args: Sequence[str] | None = None, exit_on_failure: bool = False) -> int:
    """Spin a node until a signal, or until it asks to stop; return the exit status.

    Args:
        create: makes the node once ROS is up.
        args: the command line; None for this process's.
        exit_on_failure: end with status 1 when autostart fails, instead of staying to be mended.
    """
    # Our own handlers: rclpy's would close the context at once, and finishing still wants to publish and to log.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: received.append(number))
    node = create()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if not node.start() and exit_on_failure:
            node.request_stop(1)
        while not received and not node.stop_requested and rclpy.ok():
            _spin_once(node, executor)
        if received:
            node.logger.info(f"{signal.Signals(received[0]).name} received, finishing")
        node.finish()
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return node.exit_code


def _spin_once(node: VprNode[Any], executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin_once(timeout_sec=SPIN_SECONDS)
    except ExternalShutdownException:
        node.stop_requested = True
    # One callback that fails must not take the node down; the text says which.
    except Exception:
        node.logger.error(f"a callback failed, going on:\n{traceback.format_exc()}", throttle_duration_sec=5.0)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
