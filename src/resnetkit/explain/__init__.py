"""A network that explains itself: why each part is there, how it looks, what it sees. No torch but in `inside`."""
