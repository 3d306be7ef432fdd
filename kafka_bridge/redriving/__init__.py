"""What operators do with dead letters: ``replay`` handles the message of one again, ``discarding`` closes letters."""
