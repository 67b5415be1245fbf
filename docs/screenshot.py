"""A picture of a run's report for README: python docs/screenshot.py RUN. Needs Chromium."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

OUT = Path(__file__).parent / "pictures" / "report.png"
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def shoot(run: Path, out: Path, width: int = 960, height: int = 1180) -> None:
    """The page as it stands in the run folder, without a network."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_context(viewport={"width": width, "height": height}, offline=True).new_page()
        page.goto((run / "report.html").absolute().as_uri())
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else OUT
    shoot(Path(sys.argv[1]), out, *map(int, sys.argv[3:]))
