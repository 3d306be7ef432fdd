"""Tests of the development servers and of the processes beside them."""
