"""Draw networks as SVG. No torch."""
