"""Logs, status and checkpoints back from the hosts: incremental, resumable, checked."""
