"""The one decoder and the one preparation of images that every command uses. They need Pillow and NumPy, no torch."""
