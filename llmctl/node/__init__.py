"""Runs on each host, one process per run: the node agent. Standard library only, Python >= 3.9."""
