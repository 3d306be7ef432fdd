"""Runs the reader's command in the foreground and passes signals on to it."""

import os
import signal
from collections.abc import Mapping, Sequence

_PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_SENT_BY_KERNEL = 0x80  # SI_KERNEL: a terminal's Ctrl-C, which the kernel gives to the command as well


def run_in_foreground(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and return its exit code, 128 + N when signal N ended it.

    SIGINT, SIGTERM and SIGHUP go to the command and are ignored here until it has ended.
    """
    waited_for = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    try:
        pid = os.posix_spawnp(
            argv[0], list(argv), environment, setsigmask=before, setsigdef=[*_PASSED_ON, signal.SIGPIPE]
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
        # Of what came too late for the command, nothing must interrupt the clearing up.
        while signal.sigpending() & _PASSED_ON:
            signal.sigwait(_PASSED_ON)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
