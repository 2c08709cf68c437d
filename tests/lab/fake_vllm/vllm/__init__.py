"""Stands in for vLLM where that is not installed: its command line and its HTTP API, as far as llmctl uses
them, before the builtin engine. It counts because it passes the contract that the real one passes
(tests/contract/test_replica.py)."""

__version__ = "0.0-fake"
