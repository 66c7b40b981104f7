"""The HTTP server of a trained model: JSON for programs and a page for people."""
