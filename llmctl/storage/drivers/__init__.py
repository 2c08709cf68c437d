"""What the stores' own clients do right, and nothing of what they do wrong: one small `Driver` per kind.

A driver turns one call into one request, or a few; it knows no deadline, no retry and no temporary name
(`storage/remote.py` does) and raises what its client raises. Each module says which traps it closes. A client
is imported only when a URL asks for it.
"""
