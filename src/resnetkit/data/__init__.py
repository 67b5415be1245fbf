"""Images and their classes: open, split, load and check a dataset. Only `loader` imports torch."""
