"""Build web pages and SVG charts as text. Nothing here imports torch."""
