"""Hugging Face checkpoints in and out: tensor files, names, loading, exporting, and their command line."""
