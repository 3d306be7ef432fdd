#!/usr/bin/env python
"""Entry point of every process of the service: see the Procfile for how they are called."""

import os
import select
import signal
import sys

_OUTPUTS = (1, 2)


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        try:
            execute_from_command_line(sys.argv)
        finally:
            # Here rather than at the interpreter's end, where a reader that has gone cannot be caught.
            sys.stdout.flush()
    except ImproperlyConfigured as error:
        sys.exit(str(error))
    except BrokenPipeError:
        # As in ``| head -1``: not an error, but the output is not whole either. Connections break like this too.
        if not any(_has_no_reader(output) for output in _OUTPUTS):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in filter(_has_no_reader, _OUTPUTS):
            os.dup2(nowhere, output)
        sys.exit(128 + signal.SIGPIPE)


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    main()
