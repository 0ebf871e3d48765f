"""Ending a process on a signal: finish the step, save a checkpoint, then exit."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

# Not every system has all of them. A closed terminal sends SIGHUP, and `ulimit -t` sends SIGXCPU.
_SIGNAL_NAMES = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"]

_SIGNAL_OF_PARENT = getattr(signal, "SIGUSR2", signal.SIGTERM)
"""What a parent sends to its workers. Windows has no SIGUSR2."""

_PARENT = os.getppid()


class Interrupted(BaseException):
    """A signal interrupted the work.

    It is not an Exception, so that it ends a whole sweep and not only one job.
    """

    def __init__(self, number: int) -> None:
        """Take the number of the signal; the exit status is 128 + number."""
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


class GracefulShutdown:
    """A context manager that records the first signal; a second signal has its usual effect.

    A signal that the process ignores stays ignored: `nohup` ignores SIGHUP, and a shell ignores
    SIGINT for a command in the background of a script. Outside the main thread signals cannot be
    handled, and nothing is recorded.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal was recorded."""
        return self._signal is not None

    def __enter__(self) -> "GracefulShutdown":
        """Start to record signals."""
        if threading.current_thread() is threading.main_thread():
            for number in _available_signals():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous signal handlers."""
        self._restore_handlers()

    def finish(self) -> NoReturn:
        """Pass the recorded signal on to the previous handler, then raise Interrupted.

        Cluster launchers install a handler that requeues the job.

        Raises:
            Interrupted: Always, unless the previous handler ends the process.
        """
        number = self._signal
        if number is None:
            raise RuntimeError("no signal was received")
        handler = self._previous_handlers.get(number)
        self._restore_handlers()
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, None)
        raise Interrupted(number)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def signals_as_exceptions(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise Interrupted for each signal that would otherwise end the process.

    A process that waits for worker processes ends them when an exception propagates. A killed
    process would leave its workers behind.

    Args:
        before: What to do before Interrupted is raised.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        before()
        raise Interrupted(number)

    defaults = (signal.SIG_DFL, signal.default_int_handler)
    previous_handlers = {
        number: handler
        for number in _available_signals()
        if (handler := signal.getsignal(number)) in defaults
    }
    for number in previous_handlers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def obey_only_parent(end: Callable[[int], object], interval: float = 1.0) -> None:
    """Let this worker process end if its parent asks for it or has ended, and not otherwise.

    Signals from a terminal reach the workers as well as the parent. Workers ignore them, because
    the parent passes one signal on, and a second one would end a worker before it has saved a
    checkpoint. A worker whose parent is killed would go on alone, so this worker looks whether its
    parent has ended.

    Args:
        end: Ends this process. It is called with the exit status if the signal of the parent
            arrives outside `interruptible_by_parent`, as between two jobs.
        interval: Seconds between two looks at the parent.
    """
    for number in _available_signals():
        signal.signal(number, signal.SIG_IGN)
    signal.signal(_SIGNAL_OF_PARENT, lambda number, frame: end(128 + number))

    def watch() -> None:
        while not parent_has_ended():
            time.sleep(interval)
        interrupt_worker(os.getpid())

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def interruptible_by_parent() -> Iterator[None]:
    """Raise Interrupted if the parent interrupts this worker process within the context."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    handler = signal.getsignal(_SIGNAL_OF_PARENT)
    try:
        signal.signal(_SIGNAL_OF_PARENT, interrupt)
        yield
    finally:
        signal.signal(_SIGNAL_OF_PARENT, handler)


def interrupt_worker(process: int) -> None:
    """Interrupt a worker process that obeys only its parent. It may have ended already."""
    with suppress(OSError):
        os.kill(process, _SIGNAL_OF_PARENT)


def parent_has_ended() -> bool:
    """Return whether the process that has started this process has ended."""
    return os.getppid() != _PARENT


def _available_signals() -> list[int]:
    return [getattr(signal, name) for name in _SIGNAL_NAMES if hasattr(signal, name)]
