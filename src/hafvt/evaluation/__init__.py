"""Ranks and metrics."""
