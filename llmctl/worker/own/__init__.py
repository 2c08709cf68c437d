"""Training of a model of your own: what `llmctl.worker` offers to a script beside `report`."""
