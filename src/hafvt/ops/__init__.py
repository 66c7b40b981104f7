"""Fast tensor operations, each with a plain reference implementation in the code or its tests."""
