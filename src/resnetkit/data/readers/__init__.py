"""One reader per kind of dataset. None of them imports torch."""
