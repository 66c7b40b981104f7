"""Commands that combine training, evaluation and reports."""
