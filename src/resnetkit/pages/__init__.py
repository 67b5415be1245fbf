"""Every page and picture is made with these: an HTML shell, SVG, charts. No scripts, no network, no fonts from afar."""
