"""HTML and SVG that pages are made of. No torch."""
