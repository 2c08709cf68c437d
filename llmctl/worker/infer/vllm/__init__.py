"""vLLM as what computes in a replica: its own server as a child, spoken to as the builtin engine is."""
