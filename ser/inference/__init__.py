"""Predictions for many recordings, and segments along them."""
