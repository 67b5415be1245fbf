"""Take screenshots of pages for the documentation; needs Chromium.

python docs/screenshot.py RUN        the report of a run
python docs/screenshot.py MODEL/engines    the report of optimize
python docs/screenshot.py            the page of ResNet-50, wide and narrow
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from resnetkit.architecture.catalog import CATALOG
from resnetkit.explain.page import render_network_page

PICTURES = Path(__file__).parent / "pictures"
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def shoot(html: Path, out: Path, width: int, height: int) -> None:
    """Take a screenshot of a page in a file, without network access."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_context(viewport={"width": width, "height": height}, offline=True).new_page()
        page.goto(html.absolute().as_uri())
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        out, height = ("engines.png", 900) if folder.name == "engines" else ("report.png", 1180)
        shoot(folder / "report.html", PICTURES / out, 960, height)
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(render_network_page("resnet50", CATALOG["resnet50"]), encoding="utf-8")
        shoot(path, PICTURES / "page.png", 1280, 1180)
        shoot(path, PICTURES / "page-narrow.png", 400, 900)
