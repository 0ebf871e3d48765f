"""Signals that ask this process to stop."""

import os
import signal
import threading

import pytest

from vae.utils.signals import GracefulShutdown, Interrupted


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_first_signal_is_recorded_and_finish_raises_its_exit_status(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, GracefulShutdown() as shutdown:
        assert not shutdown.requested
        os.kill(os.getpid(), number)
        assert shutdown.requested
        shutdown.finish()
    assert caught.value.status == 128 + number
    assert name in str(caught.value)
    assert signal.getsignal(number) is before


def test_second_signal_has_its_usual_effect():
    with pytest.raises(KeyboardInterrupt), GracefulShutdown():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_finish_passes_the_signal_on_to_the_previous_handler():
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    try:
        with pytest.raises(Interrupted), GracefulShutdown() as shutdown:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert handled == []
            shutdown.finish()
        assert handled == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_finish_without_a_signal_is_an_error():
    with pytest.raises(RuntimeError, match="no signal"), GracefulShutdown() as shutdown:
        shutdown.finish()


def test_previous_handler_is_restored_if_no_signal_came():
    before = signal.getsignal(signal.SIGTERM)
    with GracefulShutdown():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_recorded_outside_the_main_thread():
    requested = []

    def enter():
        before = signal.getsignal(signal.SIGTERM)
        with GracefulShutdown() as shutdown:
            assert signal.getsignal(signal.SIGTERM) is before
            requested.append(shutdown.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert requested == [False]
