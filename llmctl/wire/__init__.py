"""The contract between machines: what is said over SSH and what lies in a run directory.

Standard library only and readable for Python 3.9, because the node agent ships it to hosts.
"""
