"""A fact is a command text and a pure parser of its output."""
