"""The built-in model: its configuration, the sizes by name, and the decoder itself."""
