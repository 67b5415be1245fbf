"""Limits for tests of hostile input that hold on a busy machine, because they count time of the processor only."""

import contextlib
import signal


@contextlib.contextmanager
def cpu_limit(seconds=20):
    """Fail if the block uses more seconds of the processor; anything that hangs needs far more."""

    def fail(*_):
        raise AssertionError(f"used more than {seconds} seconds of the processor")

    previous = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
