"""Being asked to stop, in this process."""

import os
import signal
import threading

import pytest

from vae.signals import Interrupted, Interruption


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_the_first_signal_is_noted_and_leaving_says_its_status(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, Interruption() as interruption:
        assert interruption.requested is None
        os.kill(os.getpid(), number)
        assert interruption.requested == number
        interruption.leave()
    assert caught.value.status == 128 + number
    assert name in str(caught.value)
    assert signal.getsignal(number) is before


def test_the_second_signal_strikes_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_whoever_handled_it_before_is_told():
    told = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    try:
        with pytest.raises(Interrupted), Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert told == []
            interruption.leave()
        assert told == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_nothing_is_left_behind_where_nobody_asked():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_nothing_is_handled():
    noted = []

    def enter():
        with Interruption() as interruption:
            noted.append(interruption.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert noted == [None]
