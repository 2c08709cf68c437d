"""Checkpoints: what is in one (`state`), where (`place`), `save` and `load`."""
