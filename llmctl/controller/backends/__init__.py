"""Places node agents somewhere, lists them, ends them. SSH is the default."""
