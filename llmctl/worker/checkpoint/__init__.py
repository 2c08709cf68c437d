"""Checkpoints: what is in one (`state`), where (`place`), which are whole (`catalog`), `save` and `load`."""
