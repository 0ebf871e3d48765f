"""Signals that ask this process to stop."""

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from tests.helpers import ROOT
from vae.utils.signals import GracefulShutdown, Interrupted, signals_as_exceptions


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
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


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_an_ignored_signal_stays_ignored(name):
    """A shell ignores SIGINT in the background of a script, and nohup ignores SIGHUP."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with GracefulShutdown() as shutdown, signals_as_exceptions():
            os.kill(os.getpid(), number)
            assert not shutdown.requested
    finally:
        signal.signal(number, before)


def test_a_process_ends_with_its_parent():
    reader, writer = os.pipe()
    program = (
        "import subprocess, sys, time\n"
        "child = 'from vae.utils.signals import obey_only_parent; import os, time; '\n"
        "child += 'obey_only_parent(os._exit, 0.05); print(1, flush=True); time.sleep(600)'\n"
        "process = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE,\n"
        f"                           pass_fds=[{writer}])\n"
        "process.stdout.read(1)\n"  # then end, and leave the child alone
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, pass_fds=[writer], check=True, timeout=60
    )
    os.close(writer)
    assert select.select([reader], [], [], 60)[0], "the child has not ended"
    assert os.read(reader, 1) == b""  # the pipe is closed with the last process that holds it
    os.close(reader)


def test_a_worker_is_interrupted_only_by_its_parent_and_only_in_a_job():
    program = (
        "import os, signal\n"
        "from vae.utils.signals import *\n"
        "from vae.utils.signals import _SIGNAL_NAMES\n"
        "obey_only_parent(lambda status: print('end with', status))\n"
        "for name in set(_SIGNAL_NAMES) - {'SIGUSR2'}:\n"
        "    os.kill(os.getpid(), getattr(signal, name))\n"
        "interrupt_worker(os.getpid())\n"
        "try:\n"
        "    with interruptible_by_parent():\n"
        "        interrupt_worker(os.getpid())\n"
        "except Interrupted as interruption:\n"
        "    print(interruption)\n"
        "interrupt_worker(os.getpid())\n"
    )
    output = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    end = f"end with {128 + signal.SIGUSR2}"
    assert output.splitlines() == [end, "interrupted by SIGUSR2", end]


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
