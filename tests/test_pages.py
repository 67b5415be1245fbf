"""Web pages and charts: text is escaped, nothing is loaded, and a real browser shows them without errors."""

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.architecture.card import TrainingInfo, make_card
from resnetkit.data.check import CheckResult, DuplicateGroup, ImageInfo
from resnetkit.data.check_page import build_check_page
from resnetkit.data.dataset import Dataset, ImageFiles
from resnetkit.engines.base import EngineConfig
from resnetkit.engines.saved import EngineComparison, Measurement, OptimizeResult, SavedEngine
from resnetkit.evaluation.result import Evaluation, Predictions
from resnetkit.html import charts, svg
from resnetkit.html import page as html
from resnetkit.images.prepare import encode_thumbnail
from resnetkit.optimization.report import get_model_name, render_optimize_report
from resnetkit.training.events import EpochMetrics
from resnetkit.training.recipe import Recipe
from resnetkit.training.report import build_run_report, compute_sign_test
from resnetkit.training.run_folder import Results, Run, Thumbnail

from helpers.tiny import BASE

NASTY = ("<script>alert(1)</script>", "</style><b>", '"&\u202eabc')


def make_run(classes=NASTY, epochs=6, path="runs/x"):
    """Build a finished run with nine correct predictions per class, and a few wrong ones."""
    metrics = tuple(
        EpochMetrics(i, 0.1, 2.0 / i, 1 - 0.8 / i, 20, 10 + i, (10 + i) / 20, 1.9 / i, 900.0, 3.0)
        for i in range(1, epochs + 1)
    )
    pairs = [(i, j) for i in range(len(classes)) for j in range(len(classes)) for _ in range(9 if i == j else j)]
    names = tuple(f"{classes[i]}/{n}.png" for n, (i, _) in enumerate(pairs))
    confidence = tuple(0.3 + 0.69 * n / len(pairs) for n in range(len(pairs)))
    predictions = Predictions(names, tuple(i for i, _ in pairs), tuple(j for _, j in pairs), confidence)
    skipped = ((f"{NASTY[0]}.png", NASTY[1]),)
    evaluation = Evaluation("tiny", "flowers", "test", classes, predictions, len(pairs), 0.4, skipped)
    pixel = encode_thumbnail(Image.new("RGB", (4, 4), (200, 30, 30)))
    thumbnails = tuple(
        Thumbnail(i, pixel) for i in sorted({*evaluation.find_mistakes(24), *evaluation.find_least_confident(24)})
    )
    sizes = (("train", 60), ("test", len(pairs)))
    results = Results(epochs, 20.0, "cpu", "fp32", sizes, (NASTY[0],), evaluation, thumbnails, "val got no better")
    environment = {"python": "3.11", "packages": {"torch": "2.15.0"}}
    card = replace(make_card("tiny", BASE, classes), training=TrainingInfo("flowers", "f00d", 0, 0, epochs))
    return Run(Path(path), Recipe("flowers", "tiny"), card, metrics, results, environment)


def test_names_are_escaped():
    page = build_run_report([make_run()])
    for name in NASTY[:2]:
        assert name not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page


def test_content_policy_allows_only_the_style():
    page = html.render_html("t", "l", [])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r'(src|href)="', page)


def test_charts_are_valid_svg():
    for drawing in (
        charts.draw_line_chart("a", "x", {"one": [(0.0, 1.0), (1.0, float("nan")), (2.0, 3.0)], "none": []}),
        charts.draw_line_chart("b", "x", {"flat": [(1.0, 5.0)]}),
        charts.draw_line_chart("c", "x", {}),
        charts.draw_line_chart("e", "x", {"far": [(1.0, 1e308), (2.0, -1e308), (3.0, 1e-13)]}),
        charts.draw_confusion_matrix("d", NASTY, [[1, 0, 2], [0, 0, 0], [5, 5, 5]]),
    ):
        root = ET.fromstring(drawing)
        assert "nan" not in drawing
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]


def test_ticks_enclose_the_interval():
    for low, high in [(0, 1), (0.97, 0.98), (-3, 1000), (5, 5), (0, 0), (0, 1e-13), (1e-13, 1e-13), (0, 5e-324)]:
        ticks = charts.compute_ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 2 <= len(ticks) <= 8


def test_attributes_are_escaped():
    assert svg.build_element("a", b='"<&') == '<a b="&quot;&lt;&amp;"/>'
    assert svg.build_text("<b>", 1, 2.50) == '<text x="1" y="2.5">&lt;b&gt;</text>'


def make_check_result(tmp_path):
    """Build a result with unreadable files, each kind of duplicates, and nasty names."""
    paths = []
    for i, name in enumerate((*NASTY, "plain")):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (40, 30), (40 * i, 90, 90)).save(path)
        paths.append((path, name))
    files = ImageFiles(tuple(p for p, _ in paths), tuple(n for _, n in paths), np.arange(4))
    data = Dataset(f"data of {NASTY[0]}", (*NASTY, "plain"), {"train": files, "val": files}, (NASTY[1],))
    images = [
        ImageInfo(split, i, i, f"{name}.png", 40, 30, bytes([i]))
        for split in ("train", "val")
        for i, (_, name) in enumerate(paths)
    ]
    unreadable = ImageInfo("train", 0, 0, f"{NASTY[0]}/bad.png", error=NASTY[1])
    duplicates = (
        DuplicateGroup((images[0], images[4]), True),
        DuplicateGroup((images[1], images[2]), False),
        DuplicateGroup((images[3], images[3]), True),
    )
    return CheckResult(data, (*images, unreadable), duplicates)


PAGES = {
    "report": (lambda folder: build_run_report([make_run(("daisy", *NASTY))]), "x: tiny on flowers", 5),
    "several": (lambda folder: build_run_report([make_run(path="a/x"), make_run(path="b/x", epochs=3)]), "2 runs", 4),
    "check": (lambda folder: build_check_page(make_check_result(folder)), f"check of data of {NASTY[0]}", 0),
}


@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "has_scripts"), [(1280, True), (400, True), (400, False)])
def test_page_in_a_browser(browser, tmp_path, name, width, has_scripts):
    build, title, n_charts = PAGES[name]
    path = tmp_path / "page.html"
    path.write_text(build(tmp_path), encoding="utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, java_script_enabled=has_scripts
    )
    page = context.new_page()
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    assert errors == []
    assert [url for url in requests if not url.startswith("data:image/jpeg;base64,")] == [path.as_uri()]
    assert page.title() == title
    assert page.locator("svg").count() == n_charts + (name == "report")
    assert page.locator("table tbody tr").count() > 3
    if has_scripts:
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none"  # the policy allows the style
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        if width == 400 and n_charts:  # text in a chart stays readable on a phone
            width_of_chart = "document.querySelector('.charts svg').getBoundingClientRect().width"
            assert page.evaluate(f"13 * {width_of_chart} / 420 > 10")
    context.close()


def test_check_page_escapes_names(tmp_path):
    page = build_check_page(make_check_result(tmp_path))
    for name in NASTY[:2]:
        assert name not in page
    assert "Leaks between splits" in page
    assert "Conflicting labels" in page
    assert "Duplicates" in page
    assert page.count("data:image/jpeg;base64,") == 6 + 8


def test_several_runs_on_the_same_page():
    first, second = make_run(path="a/x"), make_run(path="b/x", epochs=3)
    second = replace(second, recipe=replace(second.recipe, epochs=3))
    page = build_run_report([first, second])
    assert "a/x" in page
    assert "b/x" in page
    assert "<td>epochs</td><td>30</td><td>3</td>" in page
    assert "100.0%" in page  # equal predictions: no difference


@pytest.mark.parametrize(
    ("a", "b", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (300, 400, 1.8e-4)]
)
def test_sign_test(a, b, p):
    assert compute_sign_test(a, b) == compute_sign_test(b, a) == pytest.approx(p, rel=0.02)


# ------------------------------------------------------------------------------------------------- optimize report


def make_optimize_result(match_rate=0.99):
    slow = Measurement(EngineConfig("eager", "fp32"), 100.0, 10.0, 2.0, EngineComparison(1e-7, match_rate))
    fast = Measurement(EngineConfig("openvino", "int8", 32, 2), 650.0, 98.0, 0.5, EngineComparison(0.2, match_rate))
    mismatch = EngineComparison(0.5, match_rate, reason="logits differ")
    bad = Measurement(EngineConfig("openvino", "bf16"), 300.0, 3.3, comparison=mismatch)
    kept = tuple(SavedEngine(purpose, row, (), "abc") for purpose, row in (("throughput", fast), ("startup", fast)))
    return OptimizeResult("", "a processor", "16 pictures", (slow, fast, bad), kept)


def test_scatter_plot_has_a_legend_and_labels():
    points = [charts.ScatterPoint("one", 1e-7, 10, "a", shape_group="fp32"), charts.ScatterPoint("two", 0.1, 40, "b", True, "int8"),
              charts.ScatterPoint("two", 0.1, 40, "c", shape_group="fp32", label="start")]  # fmt: skip
    root = ET.fromstring(f"<div>{charts.draw_scatter_plot('a chart', ('apart', 'images/s'), points)}</div>")
    keys, plot = root.findall("div"), root.find("{*}svg")
    assert [[span.find("svg").tail for span in key] for key in keys] == [
        ["one", "two"],
        ["fp32", "int8", "excluded", "chosen"],
    ]
    texts = [text.text for text in plot.findall(".//{*}text")]
    assert {"apart", "images/s", "start", "1e-7"} <= set(texts)
    marks = [
        (mark.get("x"), mark.get("y"), [child.tag.rpartition("}")[2] for child in mark])
        for mark in plot.findall("{*}svg")
    ]
    assert marks == [("2%", "241.5", ["circle"]), ("98%", "30", ["path"]), ("98%", "30", ["circle", "circle"])]


def test_labels_of_close_points_do_not_overlap():
    points = [
        charts.ScatterPoint("one", 0.1, y, "", label=name)
        for y, name in ((40, "high"), (39.9, "middle"), (39.8, "low"))
    ]
    root = ET.fromstring(f"<div>{charts.draw_scatter_plot('a chart', ('x', 'y'), points)}</div>")
    y_positions = sorted(
        float(text.get("y")) for text in root.findall(".//{*}text") if text.text in ("high", "middle", "low")
    )
    assert len(y_positions) == 3 and all(lower - upper > 15.9 for upper, lower in itertools.pairwise(y_positions))


@pytest.mark.browser
def test_optimize_report_fits_every_screen(tmp_path, browser):
    path = tmp_path / "engines.html"
    path.write_text(render_optimize_report("net", make_optimize_result()))
    for width in (1280, 400):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        plot, body = page.locator("svg.plot").bounding_box(), page.locator("p.lead").bounding_box()
        assert plot["width"] > body["width"] - 65 and plot["height"] == 360
        assert page.locator("thead").first.locator("th").all_text_contents()[:2] == ["engine", "throughput (images/s)"]
        assert page.locator("svg.plot text", has_text="throughput, startup").count() == 1
        page.close()


def test_optimize_report_states_the_speedup_and_the_comparison():
    page = render_optimize_report("net", make_optimize_result()).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "<dd>650.0 images/s</dd>" in page and "many images, openvino-int8, batch 32 x 2, 6.5 times eager fp32" in page
    )
    assert "Only logits were compared" not in page and '<th scope="col">matches fp32 (%)</th>' in page
    logits_only = render_optimize_report("net", make_optimize_result(match_rate=None))
    assert "Only logits were compared" in logits_only and '<th scope="col">matches fp32 (%)</th>' not in logits_only


def test_model_folder_in_a_run_has_the_name_of_the_run(tmp_path, monkeypatch):
    for run in ("digits-1", "other"):
        (tmp_path / run / "model").mkdir(parents=True)
    (tmp_path / "digits-1" / "run.toml").touch()
    assert [get_model_name(tmp_path / run / "model") for run in ("digits-1", "other")] == ["digits-1", "model"]
    monkeypatch.chdir(tmp_path / "digits-1" / "model")
    assert get_model_name(Path()) == "digits-1"
