"""Being asked to stop: finish the step, keep everything, then leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

_ASKING = ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"]  # by name: not every system has all


class Interrupted(BaseException):
    """A signal asked for the end, and all is kept. No Exception: a sweep ends with it, too."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


class Interruption:
    """While it is entered, the first signal is only noted in `requested`; the second one strikes.

    Outside the main thread signals cannot be handled, and nothing is noted.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for name in _ASKING:
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def leave(self) -> None:
        """Hands the signal to whoever handled it before, as cluster launchers do to requeue.

        Raises Interrupted where that was nobody but Python itself.
        """
        number, before = self.requested, self._before.get(self.requested)
        self._restore()
        if callable(before) and before is not signal.default_int_handler:
            before(number, None)
        raise Interrupted(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)


@contextmanager
def raising() -> Iterator[None]:
    """While it is entered, a signal that would end the process raises Interrupted instead.

    A process that waits for others ends them on an exception; killed, it would leave them behind.
    """

    def strike(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = [getattr(signal, name) for name in _ASKING if hasattr(signal, name)]
    deadly = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in deadly:
        signal.signal(number, strike)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)
