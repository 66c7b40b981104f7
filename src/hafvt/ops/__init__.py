"""What must be fast, each with its plain reference."""
