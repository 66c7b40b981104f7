"""Pictures and titles become frozen vectors."""
