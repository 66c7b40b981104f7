"""Rows of interactions and items become a dataset."""
