"""Runs the user's command in the foreground and forwards signals to it."""

import os
import signal
from collections.abc import Mapping, Sequence

_FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_SENT_BY_KERNEL = 0x80  # SI_KERNEL: Ctrl-C at the terminal, which the kernel sends to the command as well


def run_in_foreground(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and return its exit code, 128 + N if signal N ended it.

    SIGINT, SIGTERM and SIGHUP are forwarded to the command and have no effect here until it has ended.
    """
    waited_for = {*_FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    try:
        pid = os.posix_spawnp(
            argv[0], list(argv), environment, setsigmask=before, setsigdef=[*_FORWARDED, signal.SIGPIPE]
        )
        while True:
            received = signal.sigwaitinfo(waited_for)
            if received.si_signo != signal.SIGCHLD:
                if received.si_code != _SENT_BY_KERNEL:
                    os.kill(pid, received.si_signo)
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
    finally:
        # Discard signals that came too late for the command: they must not interrupt the cleanup.
        while signal.sigpending() & _FORWARDED:
            signal.sigwait(_FORWARDED)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
