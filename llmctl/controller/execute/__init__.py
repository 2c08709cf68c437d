"""Runs steps on many hosts at once and returns one result per host."""
