"""Runs once per rank, started by the launcher: the built-in recipe and what scripts may import."""
