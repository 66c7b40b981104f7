"""Commands that put the parts together."""
