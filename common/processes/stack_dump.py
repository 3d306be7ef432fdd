"""SIGUSR1 writes the stack of every thread to the log, for a process that hangs."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_SIGNALS = {signal.SIGUSR1}


class StackDumper(threading.Thread):
    """Waits for SIGUSR1 and logs the stacks.

    The signal is blocked in the thread that calls ``start`` and in all threads that it starts afterwards, and this
    thread takes it with ``sigwait``. So no system call of the others is interrupted, and it works while the main thread
    is in C code, where Python would not run a signal handler.
    """

    def __init__(self) -> None:
        super().__init__(name="stack-dump", daemon=True)
        self._ended = False

    def start(self) -> None:
        """Start the thread. Call it in the main thread, before any other thread is started."""
        # For threads that do not block the signal: its default action would end the process.
        signal.signal(signal.SIGUSR1, lambda signum, frame: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        super().start()

    def end(self) -> None:
        """Stop the thread and unblock the signal in the calling thread."""
        self._ended = True
        if self.ident is not None:
            signal.pthread_kill(self.ident, signal.SIGUSR1)
            self.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def run(self) -> None:
        while True:
            signal.sigwait(_SIGNALS)
            if self._ended:
                return
            log_stacks()


@contextmanager
def stacks_on_signal() -> Iterator[None]:
    """Log the stacks at SIGUSR1 while inside; does nothing outside the main thread, which alone may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGUSR1)
    dumper = StackDumper()
    dumper.start()
    try:
        yield
    finally:
        dumper.end()
        signal.signal(signal.SIGUSR1, before)


def log_stacks() -> None:
    """Log the stacks of all other threads: a line for each different stack, with the threads that have it.

    Several lines, because log collectors cut long ones.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads: defaultdict[str, list[str]] = defaultdict(list)
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            stack = "".join(traceback.format_stack(frame))
            threads[stack].append(names.get(ident, f"thread {ident}"))
    for number, (stack, having) in enumerate(threads.items(), start=1):
        logger.info(
            "stack %d of %d, of %d threads (%s):\n%s",
            number,
            len(threads),
            len(having),
            ", ".join(sorted(having)),
            stack,
        )
