"""A network that explains itself: why each part is there, and what it looks like. No torch."""
