"""Inference on a host: replicas of a model, and the front that gives them work."""
