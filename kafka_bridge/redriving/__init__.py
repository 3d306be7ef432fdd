"""What operators do with dead letters: replay them, one or many, or discard them.

``replay`` handles the message of one letter again, ``discarding`` closes letters. ``redrives`` are sets of letters that
are replayed: ``preview`` says what would happen, and ``executor`` does it, in the housekeeper or in a command.
"""
