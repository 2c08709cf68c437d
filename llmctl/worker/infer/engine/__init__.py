"""The built-in inference engine: continuous batching over a cache of slots, alone or on tp x pp ranks.

A step is a value (`plan.Step`): rank 0's scheduler makes it, every rank does its part of it, the last stage
samples, and rank 0 learns the outcome.
"""
