"""Tests of the stories that the demo tells: their documents and their output."""
