"""A folder on the PYTHONPATH of the ranks, for the module that every interpreter imports by itself."""
