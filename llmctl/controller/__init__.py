"""Runs on the operator's machine or a CI runner. Never imports torch, `node` or `worker`."""
