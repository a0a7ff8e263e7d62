"""Scores of model output; pure functions of text, with no model and no I/O."""
