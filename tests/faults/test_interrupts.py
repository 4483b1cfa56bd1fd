"""Ctrl-C and SIGTERM: held back until a step is done, never lost."""

import os
import signal

import pytest

from secateur.base.interrupts import Terminated, deferred_interrupt, sigterm_raises


@pytest.fixture(autouse=True)
def pythons_own_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_waits_for_the_end_of_the_block_and_then_comes(number, raised):
    steps = []
    with sigterm_raises(), pytest.raises(raised), deferred_interrupt() as interrupted:  # noqa: PT012
        assert not interrupted()
        os.kill(os.getpid(), number)
        steps.append(interrupted())
    assert steps == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_is_not_lost_behind_an_error():
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError


def test_a_second_signal_is_not_held_back():
    steps = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        steps.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        steps.append(2)
    assert steps == [1]


def test_without_a_handler_sigterm_ends_the_process_after_the_step():
    child = os.fork()
    if child == 0:
        with deferred_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(1, b"")
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
