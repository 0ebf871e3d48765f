"""Ending a process on a signal: finish the step, save a checkpoint, then exit."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NoReturn

# Not every system has all of them. A closed terminal sends SIGHUP, and `ulimit -t` sends SIGXCPU.
_SIGNAL_NAMES = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"]


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
def signals_as_exceptions() -> Iterator[None]:
    """Raise Interrupted for each signal that would otherwise kill the process.

    A process that waits for worker processes ends them when an exception propagates. A killed
    process would leave its workers behind.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    unhandled = [n for n in _available_signals() if signal.getsignal(n) is signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


@cache
def end_with_parent(interval: float = 1.0) -> Callable[[], bool]:
    """Send SIGTERM to this process as soon as its parent process has ended.

    A worker whose parent is killed would otherwise go on alone. Repeated calls do no harm.

    Args:
        interval: Seconds between two looks at the parent.

    Returns:
        A function that returns whether the parent has ended.
    """
    parent = os.getppid()

    def has_ended() -> bool:
        return os.getppid() != parent

    def watch() -> None:
        while not has_ended():
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return has_ended


def _available_signals() -> list[int]:
    return [getattr(signal, name) for name in _SIGNAL_NAMES if hasattr(signal, name)]
