"""The node agent: one process per host and run. Standard library only, readable for Python 3.9."""
