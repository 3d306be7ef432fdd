"""Redrives: sets of dead letters that are replayed, with a preview of the outcome.

``replay`` replays one letter. ``redrives`` is what operators do, ``preview`` says what would happen, and ``executor``
does it, in the housekeeper or in a command.
"""
