"""The supervisor of a run: looks at its hosts, and does what `plan/attempts.py` decides."""
