"""Signals: the first is remembered, its echo is not a second one, a second one ends the process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from transferkit.training.loop.interruption import Interruption, SignalFlag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered_and_its_echo_ignored(number):  # fault 47
    before = signal.getsignal(number)
    flag = SignalFlag()
    with flag.installed():
        assert flag.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert flag.received == number
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once():  # fault 47
    script = (
        "import time\n"
        "from transferkit.training.loop import interruption as signals\n"
        "signals.SAME_SIGNAL_S = 0.2\n"
        "flag = signals.SignalFlag()\n"
        "with flag.installed():\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_a_signal_that_comes_while_the_others_are_asked_is_told_next_time(monkeypatch):  # fault 47
    flag = SignalFlag()
    interruption = Interruption(flag)

    def agree(*numbers):
        flag.received = signal.SIGTERM  # too late for the answer
        return numbers

    with monkeypatch.context() as patch:
        patch.setattr("transferkit.training.loop.interruption.agree", agree)
        assert interruption.signal_after(10, processes=2) is None
    assert flag.received == signal.SIGTERM
    assert interruption.signal_after(10, processes=2) is None  # not asked for yet
    assert interruption.signal_after(10**6, processes=2) == signal.SIGTERM
