"""Real SSH hosts on one Linux machine, made of namespaces; for tests and benchmarks only (needs root)."""
