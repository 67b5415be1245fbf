"""One decoder and one preparation of pictures, for everything that reads them. Pillow and numpy, no torch."""
