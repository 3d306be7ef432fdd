"""The error that the command line prints without a traceback."""


class DevstackError(Exception):
    """An error that the user can fix; its text is one line that says what to do next."""
