"""Scores, their intervals, plots, the report and the model card."""
