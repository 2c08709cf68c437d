"""As vLLM has its modules."""
