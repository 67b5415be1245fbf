"""Pages and charts: text is text, nothing is loaded, and a real browser shows them without a complaint."""

import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from resnetkit.architecture.card import Training, card_for
from resnetkit.learn.evaluate import Evaluation
from resnetkit.learn.recipe import Recipe
from resnetkit.learn.report import report
from resnetkit.learn.run import Epoch, Run
from resnetkit.pages import chart, html, svg

from tiny import BASE

NASTY = ("<script>alert(1)</script>", "</style><b>", '"&\u202eabc')


def a_run(classes=NASTY, epochs=6):
    rows = tuple(
        Epoch(i, 0.1, 2.0 / i, 1 - 0.8 / i, 20, 10 + i, (10 + i) / 20, 900.0, 3.0) for i in range(1, epochs + 1)
    )
    confusion = tuple(tuple(9 if i == j else j for j in range(len(classes))) for i in range(len(classes)))
    n = sum(map(sum, confusion))
    found = Evaluation("tiny", "flowers", "test", classes, n, 9 * len(classes), n, confusion)
    card = card_for("tiny", BASE, classes)
    assert card.training is None or isinstance(card.training, Training)
    return Run(Path("runs/x"), Recipe("flowers", "tiny"), card, rows, epochs, found, 20.0)


def test_names_are_text_and_never_markup():
    page = report(a_run())
    for name in NASTY[:2]:
        assert name not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page


def test_the_policy_allows_the_style_and_nothing_else():
    page = html.page("t", "l", [])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r'(src|href)="', page)


def test_charts_are_sound():
    for drawn in (
        chart.lines("a", "x", {"one": [(0.0, 1.0), (1.0, float("nan")), (2.0, 3.0)], "none": []}),
        chart.lines("b", "x", {"flat": [(1.0, 5.0)]}),
        chart.lines("c", "x", {}),
        chart.matrix("d", NASTY, [[1, 0, 2], [0, 0, 0], [5, 5, 5]]),
    ):
        root = ET.fromstring(drawn)
        assert "nan" not in drawn
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]


def test_ticks_enclose_the_values():
    for low, high in [(0, 1), (0.97, 0.98), (-3, 1000), (5, 5), (0, 0)]:
        ticks = chart._ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 2 <= len(ticks) <= 8


def test_attributes_are_escaped():
    assert svg.element("a", b='"<&') == '<a b="&quot;&lt;&amp;"/>'
    assert svg.words("<b>", 1, 2.50) == '<text x="1" y="2.5">&lt;b&gt;</text>'


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here; pages are not opened")
    playwright = pytest.importorskip("playwright.sync_api")
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--disable-quic"]  # fmt: skip
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=quiet)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_in_a_browser(browser, tmp_path, width):
    (tmp_path / "report.html").write_text(report(a_run(("daisy", *NASTY))))
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert complaints == []
    assert requests == [(tmp_path / "report.html").as_uri()]
    assert page.title() == "tiny on flowers"
    assert page.locator("svg").count() == 3
    assert page.locator("table tbody tr").first.locator("td").first.inner_text() == "daisy"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none"  # the style was let through
    context.close()
