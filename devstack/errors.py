"""The one error that the command line shows to its reader."""


class DevstackError(Exception):
    """Something the reader can act on; its text is one line that says what to do next."""
