"""Wiring, launching and the command line."""
