"""Recommending with a trained model: from Python, from files, over HTTP, without torch."""
