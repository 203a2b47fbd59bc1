"""Limits on the time of what does not look at a clock itself."""

import contextlib
import os
import signal
import threading
import time

# Python's signal handlers wait for the call into a library that is under way: one that hangs (a
# kernel that never ends) is left to guard().
GRACE = 15


class OutOfTime(BaseException):
    """Not an Exception: what catches a case's own errors is not to take it for one."""


def _raise(_signal, _frame):
    raise OutOfTime()


@contextlib.contextmanager
def limit(deadline):
    """Raises OutOfTime in the body when time.monotonic() reaches the deadline. Does not nest; for
    the main thread."""
    if deadline == float('inf'):
        yield
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise OutOfTime()
    before = signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def guard(deadline):
    """Ends the process, as failed, when it lives GRACE seconds past the deadline. Returns what
    cancels that."""
    if deadline == float('inf'):
        return lambda: None

    def end():
        print('failed: something did not end within %d s of the deadline; giving up' % GRACE,
              flush=True)
        os._exit(1)

    timer = threading.Timer(deadline + GRACE - time.monotonic(), end)
    timer.daemon = True
    timer.start()
    return timer.cancel
