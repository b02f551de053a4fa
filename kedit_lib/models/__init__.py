"""Models: loading them, their layout, and their weights."""
