"""PURE: from the journals of all ranks to the proof that each sample was used exactly once."""
