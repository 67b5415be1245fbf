"""Draw networks as SVG without torch."""
