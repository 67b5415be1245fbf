"""The page of a network: its script must compute what the Python plan says, for every size, and load nothing."""

import contextlib
from dataclasses import replace

import pytest

from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import spec
from resnetkit.architecture.operations import MaxPoolOp
from resnetkit.architecture.plan import Node, Plan, plan
from resnetkit.architecture.summary import describe_shortcut, format_summary_row, list_summary_rows
from resnetkit.errors import SpecError
from resnetkit.explain.page import render_network_page, render_plans_page
from resnetkit.explain.page_facts import plan_stride_variants
from resnetkit.explain.topics import find_topic, read_topics
from resnetkit.explain.why import why

from helpers.tiny import BASE, TINY

pytestmark = pytest.mark.browser
MARKUP_NAMES = ("<script>alert(1)</script>", "</style><b>", '"&\u202eabc')
DEEP_POOL = replace(
    BASE, stem=s.Stem((s.Conv(8, 3, 2),), (s.MaxPool(2, 2),)), stages=(*BASE.stages, *TINY["three-stages"].stages[2:])
)
NETWORKS = {
    **TINY,
    "deep-pool": DEEP_POOL,
    **{name: spec(name) for name in ("resnet18", "resnet50", "resnet20", "plain34", "resnet18_a")},
}
SIZES = (1, 32, 33, 97, 224, 333)


class BrowserTab:
    """A tab of an offline browser that records messages, errors and requests of the document that it shows."""

    def __init__(self, browser, **options):
        defaults = {"offline": True, "reduced_motion": "reduce", "viewport": {"width": 1280, "height": 900}}
        self.page = browser.new_context(**defaults | options).new_page()
        self.messages, self.requests = [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: self.messages.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))

    @contextlib.contextmanager
    def show(self, path):
        """Open a document; after the body check that it reported nothing and loaded nothing else."""
        self.messages.clear()
        self.requests.clear()
        self.page.goto(path.as_uri())
        yield self.page
        assert self.messages == []
        assert self.requests == [path.as_uri()]


@pytest.fixture(scope="module")
def open_html(browser, tmp_path_factory):
    """A function that shows a document in a shared tab, or with options of a context in a tab of its own."""
    path = tmp_path_factory.mktemp("pages") / "page.html"
    shared_tab = BrowserTab(browser)

    @contextlib.contextmanager
    def open_document(text, **options):
        path.write_text(text, encoding="utf-8")
        tab = BrowserTab(browser, **options) if options else shared_tab
        with tab.show(path) as page:
            yield page
        if options:
            page.context.close()

    yield open_document
    shared_tab.page.context.close()


@pytest.fixture(scope="module")
def open_page(open_html):
    return lambda name, network, **options: open_html(render_network_page(name, network), **options)


def get_texts(page, selector):
    return page.evaluate(
        "(selector) => [...document.querySelectorAll(selector)].map(element => element.textContent)", selector
    )


def click_box(page, path):
    page.locator(f".box[data-path='{path}'] .body").click()


def typeset(shape):
    return " × ".join(map(str, shape))


def plan_for_size(variant, size):
    """The plan of a variant for another image size; None if a map would be empty."""
    try:
        return plan(variant.spec, size)
    except SpecError:
        return None


# For each size (null resets it): enter it, then read the error, the totals, the table, the captions, and every part as
# the script measured it.
READ_PAGE_FOR_SIZES = """([variant, sizes]) => {
    const choice = document.getElementsByName("stride")[variant];
    if (choice) choice.click();
    const getText = (element) => element.textContent;
    const getRows = (rows, cells) => [...document.querySelectorAll(rows)].map((row) => [...cells(row)].map(getText));
    const describe = (part) => [part.path, part.output.shape, part.output.field, part.output.stride, part.params,
        part.macs, part.activations];
    const isWhole = (part) => part.parts && part.parts.length === 1 && part.parts[0].path === part.path;  // stem, head
    const walk = (part) => isWhole(part) ? walk(part.parts[0]) : [describe(part), ...(part.parts || []).flatMap(walk)];
    return sizes.map((size) => {
        if (size === null) byId("reset-size").click();
        else { byId("size").value = size; byId("size").dispatchEvent(new Event("input")); }
        if (!byId("size-error").hidden) return null;
        const totals = ["params", "macs", "depth", "receptive-field", "activations"].map((key) => getText(byId(`total-${key}`)));
        return {
            totals: [...totals, getText(byId("note-activations"))],
            rows: getRows("#parts tbody tr", (row) => row.children),
            captions: getRows(".caption", (caption) => caption.querySelectorAll("text")),
            parts: walk(measureNetwork(variant, state.sides)),
        };
    });
}"""


def build_expected_content(network_plan):
    rows = list_summary_rows(network_plan)
    cells = [[*format_summary_row(row)[:2], typeset(row.output), *format_summary_row(row)[3:]] for row in rows]
    shares = {row.path: f"{row.macs_share:.1%} of MACs" if row.macs else "" for row in rows}
    return {
        "totals": [
            f"{network_plan.params:,}", f"{network_plan.macs:,}", str(network_plan.depth), str(network_plan.receptive_field),
            f"{network_plan.activations:,}", f"{network_plan.activations * 4 / 2**20:.1f} MiB in fp32",
        ],
        "rows": cells,
        "captions": [[row.path, typeset(row.output), shares[row.path]] for row in rows],
        "parts": [
            [p.path, list(p.output), p.receptive_field, p.stride, p.params, p.macs, p.activations]
            for p in network_plan.parts.values()
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_script_computes_what_the_plan_says(open_page, name):
    with open_page(name, NETWORKS[name]) as page:
        for i, variant in enumerate(plan_stride_variants(NETWORKS[name])):
            plans = [variant, *(plan_for_size(variant, size) for size in SIZES)]
            expected = [build_expected_content(sized_plan) if sized_plan else None for sized_plan in plans]
            assert page.evaluate(READ_PAGE_FOR_SIZES, [i, [None, *SIZES]]) == expected


def test_empty_map_is_an_error_in_a_sentence(open_page):
    with pytest.raises(SpecError) as caught:
        plan(DEEP_POOL, 2)
    assert str(caught.value) == (
        "error: the feature map becomes empty: 1 fault\nwhere: stem.pool: got a feature map of 1x1, too small for this "
        "operation; allowed: a larger image, or fewer strides\nfix: use a larger image"
    )
    with open_page("deep", DEEP_POOL) as page:
        page.fill("#size", "2")
        assert page.text_content("#size-error") == (
            "Images of 2 × 2 are too small: the input of stem.pool is 1 × 1, so its output would be empty. "
            "Choose a larger image."
        )
        assert page.text_content("#total-macs") == page.text_content("#total-receptive-field") == "—"
        assert not page.is_visible("#details")
        page.fill("#size", "40")
        assert not page.is_visible("#size-error")
        assert page.text_content("#total-macs") == f"{plan(DEEP_POOL, 40).macs:,}"
        page.fill("#size", "")  # while somebody types, nothing changes
        assert page.text_content("#total-macs") == f"{plan(DEEP_POOL, 40).macs:,}"


def test_slider_and_number_stay_equal(open_page):
    with open_page("resnet18", spec("resnet18")) as page:
        page.locator("#slider").fill("161")
        assert page.input_value("#size") == "161"
        assert page.text_content("#total-macs") == f"{plan(spec('resnet18'), 161).macs:,}"
        assert page.text_content("#image-shape") == "3 × 161 × 161"
        page.click("#reset-size")
        assert page.input_value("#slider") == page.input_value("#size") == "224"


def get_stats(page):
    return dict(zip(get_texts(page, ".stats dt"), get_texts(page, ".stats dd"), strict=True))


@pytest.mark.parametrize(("name", "path", "size"), [
    ("resnet50", "stage2.block1", 97), ("resnet20", "stage3.block1", 45), ("plain34", "stage4.block2", 224), ("basic-d", "stage2.block1", 33),
    ("resnet50", "stem", 130), ("resnet50", "head", 130), ("bottleneck", "stage1.block2", 32),
])  # fmt: skip
def test_click_opens_the_details_of_a_block(open_page, name, path, size):
    network_plan = plan(NETWORKS[name], size)
    part = network_plan[path]
    with open_page(name, NETWORKS[name]) as page:
        page.fill("#size", str(size))
        click_box(page, path)
        assert page.text_content("#selected-path") == path
        assert get_stats(page) == {
            "in": typeset(part.input), "out": typeset(part.output), "params": f"{part.params:,}", "MACs": f"{part.macs:,}",
            "share of MACs": f"{part.macs / network_plan.macs:.1%}", "activations": f"{part.activations:,}",
            "receptive field": f"{part.receptive_field} px", "stride": f"{part.stride} px",
        }  # fmt: skip
        rows = page.evaluate(
            "[...document.querySelectorAll('#details-body .operations tbody tr')].map(row => [row.dataset.path, ...[...row.children].slice(1).map(c => c.textContent)])"
        )
        assert rows == [
            [n.path, str(n.op).replace("->", "→"), typeset(n.output), f"{n.params:,}" if n.params else "",
             f"{n.macs:,}" if n.macs else "", f"{n.macs / network_plan.macs:.1%}" if n.macs else ""]
            for n in part.nodes
        ]  # fmt: skip


def test_formula_has_the_numbers_of_the_selected_operation(open_page):
    with open_page("resnet50", spec("resnet50")) as page:
        page.fill("#size", "97")
        click_box(page, "stage2.block1")
        page.get_by_role("button", name="branch.conv2").click()
        assert get_texts(page, ".formula tr")[:2] == [
            "out= ⌊(in+ 2 ×p−d× (k− 1) − 1) /s⌋ + 1",
            "13= ⌊(25+ 2 ×1−1× (3− 1) − 1) /2⌋ + 1",
        ]
        assert "It has the stride of its block, 2." in page.text_content("#formula")
        assert "For images of 3 × 224 × 224:" in page.text_content("#formula")
        page.get_by_role("button", name="add").click()
        assert "Two maps of 13 are added" in page.text_content("#formula")
        click_box(page, "head")
        assert "becomes a vector" in page.text_content("#formula")


def test_oblong_image_has_two_formulas(open_page):
    with open_page("oblong", TINY["imagenet-stem"]) as page:
        click_box(page, "stem")
        assert get_texts(page, ".formula caption") == ["height", "width"]
        assert get_texts(page, ".formula tr:nth-child(2) .out") == ["17", "20"]
        page.fill("#size", "33")
        assert get_texts(page, ".formula caption") == []


def test_reason_of_a_shortcut_is_that_of_python_with_its_size(open_page):
    network_plan = plan(spec("resnet50"))
    with open_page("resnet50", spec("resnet50")) as page:
        click_box(page, "stage2.block1")
        reason = network_plan["stage2.block1.shortcut"].reason.replace("->", "→")
        assert page.text_content(".cause") == f"whyprojection — {reason}"
        sentence = why(network_plan, "stage2.block1.shortcut").splitlines()[0].replace("->", "→")
        assert sentence in get_texts(page, ".explanation p")
        assert page.locator(".explanation .size-note").count() == 0
        page.fill("#size", "97")
        assert page.text_content(".cause").startswith("why (for 3 × 224 × 224)projection")
        assert get_texts(page, ".explanation .size-note") == ["For images of 3 × 224 × 224:"]
        assert sentence in get_texts(page, ".explanation p")


def test_receptive_field_is_drawn_over_the_image(open_page):
    with open_page("resnet50", spec("resnet50")) as page:
        square = "['x', 'y', 'width', 'height'].map(key => Number(document.querySelector('.field').getAttribute(key)))"
        click_box(page, "stage2.block4")
        side = plan(spec("resnet50"))["stage2.block4"].receptive_field * 240 / 224
        assert page.evaluate(square) == pytest.approx([120 - side / 2, 120 - side / 2, side, side])
        caption = page.text_content("figcaption")
        assert caption == "One pixel of this map sees 91 × 91 pixels. The field of the next pixel is shifted by 8."
        click_box(page, "stage4.block3")
        assert page.evaluate(square) == [0, 0, 240, 240]
        assert "427 × 427 pixels, larger than the image" in page.text_content("figcaption")


def test_keys_move_between_boxes(open_page):
    with open_page("resnet18", spec("resnet18")) as page:
        page.locator(".box[data-path='stage1.block1']").focus()
        for key, path in [
            ("Enter", "stage1.block1"), ("ArrowRight", "stage1.block2"), ("ArrowRight", "stage2.block1"), ("ArrowLeft", "stage1.block2"),
            ("ArrowDown", "stage1"), ("ArrowRight", "stage2"), ("ArrowUp", "stage2.block1"), ("End", "head"), ("ArrowRight", "head"),
            ("Home", "stem"), ("ArrowLeft", "stem"), (" ", "stem"),
        ]:  # fmt: skip
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.dataset.path") == path
            assert page.text_content("#selected-path") == path
        assert page.get_attribute("#details header > div", "aria-live") == "polite"
        assert page.locator(".box[tabindex='0']").count() == page.locator(".caption[tabindex='0']").count() == 1
        assert (
            page.locator(".box[aria-current], .caption[aria-current]").count() == 1 + 1
        )  # the stem is box and caption
        assert page.locator(".box[role=button], .caption[role=button]").count() == 10 + 6
        page.keyboard.press("ArrowRight")
        focus = "getComputedStyle(document.activeElement.querySelector('.hit-area')).strokeWidth"
        assert page.evaluate(focus) == "2px"
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label == "stage1.block1, 64 × 56 × 56, 12.7% of MACs"
        for selector, path in (("#next", "stage1.block2"), ("#previous", "stage1.block1")):
            page.locator(selector).click()
            assert page.text_content("#selected-path") == path
        page.get_by_role("button", name="stage3", exact=True).click()
        page.locator("#next").click()
        assert page.text_content("#selected-path") == "stage3.block1"


@pytest.mark.parametrize("name", ["resnet50", "resnet20", "basic-d", "subsampled", "plain"])
def test_shortcuts_differ_by_color_and_by_line(open_page, name):
    network = NETWORKS[name]
    with open_page(name, network) as page:
        arcs_by_box = page.evaluate("""[...document.querySelectorAll('.box')].map(box => [box.dataset.path, [...box.querySelectorAll('.arc')].map(arc => {
            const style = getComputedStyle(arc); return [arc.getAttribute('class'), style.stroke, style.strokeDasharray] })])""")
        network_plan = plan(network)
        identities, adapters = set(), set()
        for path, arcs in arcs_by_box:
            shortcut = network_plan.parts.get(f"{path}.shortcut")
            assert len(arcs) == (shortcut is not None)
            for css_class, color, dash in arcs:
                assert css_class == "arc " + describe_shortcut(shortcut).replace(" ", "-")
                (adapters if shortcut.nodes else identities).add((color, dash))
        assert {color for color, _ in identities}.isdisjoint(color for color, _ in adapters)
        assert {dash for _, dash in identities}.isdisjoint(dash for _, dash in adapters)
        n_kinds = len({css_class for _, arcs in arcs_by_box for css_class, *_ in arcs})
        assert len(get_texts(page, ".legend li")) == n_kinds + 1  # and the hint


def test_boxes_are_to_scale(open_page):
    with open_page("resnet50", spec("resnet50")) as page:
        page.locator("[name=stride]").nth(1).check()

        def measure(path, key):
            return float(page.get_attribute(f".box[data-path='{path}'] .body", key))

        heights, widths = ([measure(f"stage{i}.block1", key) for i in (1, 4)] for key in ("height", "width"))
        assert (heights[0] / heights[1]) ** 2 == pytest.approx(56 / 14)
        assert (widths[1] / widths[0]) ** 2 == pytest.approx(2048 / 256, rel=0.01)


def test_sentences_follow_the_output_stride(open_page):
    with open_page("resnet50", spec("resnet50")) as page:
        page.locator("[name=stride]").nth(2).check()
        note = page.text_content("#size-note")
        assert note == "The sizes are for images of 3 × 224 × 224 and output stride 8."
        sentence = why(plan_stride_variants(spec("resnet50"))[2], "stage4").splitlines()[0]
        assert get_texts(page, "#reasons dd")[5] == sentence


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_wide_and_narrow_light_and_dark(open_page, width, scheme):
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with open_page("resnet50", spec("resnet50"), **options) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.locator(".caption[data-path='stage2']").click()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 25, 31)")
        assert "stage2.block2 to block4, each" in get_texts(page, "#details-body .operations tbody td:first-child")


def test_page_without_scripts_shows_drawing_table_and_sentences(open_page):
    network_plan = plan(spec("resnet18"))
    with open_page("resnet18", spec("resnet18"), java_script_enabled=False) as page:
        assert page.locator(".box").count() == 10
        assert page.locator("#drawing").is_visible()
        assert page.locator("#parts tbody tr").count() == 6
        assert not page.is_visible("#controls")
        assert not page.is_visible("#details")
        assert "Scripts are off" in page.locator("noscript").inner_html()
        assert page.locator("#reasons dd").nth(2).text_content() == why(network_plan, "stage1").splitlines()[0]
        assert page.locator("#total-macs").text_content() == f"{network_plan.macs:,}"
        assert page.locator("svg[role=img]").count() == 1


def test_questions_are_answered_and_searched(open_page):
    with open_page("resnet20", spec("resnet20")) as page:
        questions = page.locator("#questions details")
        assert questions.count() == len(read_topics())
        page.fill("#search", "Fan_Out KAIMING")
        question = page.locator("#questions details:not([hidden]) summary")
        assert question.text_content() == "Why are the weights initialized with kaiming and fan_out?"
        assert page.locator("#search-count").text_content() == f"1 of {len(read_topics())}"
        answer = page.locator("#questions details[open] p").first
        assert answer.text_content() == find_topic("kaiming").answer(plan("resnet20")).replace("`", "")
        page.fill("#search", "no such word")
        assert page.locator("#search-count").text_content() == f"0 of {len(read_topics())}"
        page.fill("#search", "")
        assert page.locator("#questions details:not([hidden])").count() == len(read_topics())


@pytest.mark.parametrize("name", MARKUP_NAMES)
def test_name_is_text_and_never_markup(open_page, name):
    document = render_network_page(name, TINY["basic-b"])
    if "<" in name:
        assert name not in document.replace("<script>const", "")
    with open_page(name, TINY["basic-b"]) as page:
        assert page.text_content("h1") == page.title() == name
        assert page.evaluate("network.name") == name


def test_injected_script_does_not_run(browser, tmp_path):
    path = tmp_path / "page.html"
    document = render_network_page("tiny", BASE)
    path.write_text(document.replace("</body>", "<script>document.title = 'changed'</script></body>"), encoding="utf-8")
    page = browser.new_context(offline=True).new_page()
    page.goto(path.as_uri())
    assert page.title() == "tiny"
    page.context.close()


def test_large_networks_stay_small_and_usable(open_html):
    document = render_network_page("resnet1202", spec("resnet1202"))
    assert len(render_network_page("resnet152", spec("resnet152")).encode()) < 300_000
    assert len(document.encode()) < 600_000
    with open_html(document) as page:
        assert page.locator(".box").count() == 602
        page.fill("#size", "45")
        assert page.text_content("#total-macs") == f"{plan(spec('resnet1202'), 45).macs:,}"
        click_box(page, "stage3.block200")
        assert page.text_content("#selected-path") == "stage3.block200"
        page.keyboard.press("ArrowLeft")
        assert page.text_content("#selected-path") == "stage3.block199"
        outside = "[...document.querySelectorAll('.body')].filter(b => b.x.baseVal.value < 0 || b.x.baseVal.value + b.width.baseVal.value > 1184).length"
        assert page.evaluate(outside) == 0


def test_operation_directly_in_a_stage_is_a_box(open_html):
    """The page knows nothing of its role and needs nothing but its operation."""
    stem, first, *rest = (original := plan(BASE)).root.children
    assert len(rest) == 2
    shape = (8, 8, 8)
    pool = Node("stage1.pool", "stem-pool", MaxPoolOp(2, 2), first.output, shape, first.receptive_field + 1, 2)
    stage = replace(
        first, children=(*first.children, pool), output=shape, receptive_field=pool.receptive_field, stride=2
    )
    root = replace(original.root, children=(stem, stage), output=shape, receptive_field=stage.receptive_field, stride=2)
    with open_html(render_plans_page("pooled", [Plan(BASE, root)])) as page:
        assert page.evaluate("boxes.map(box => box.dataset.path)") == [
            "stem", "stage1.block1", "stage1.block2", "stage1.pool",
        ]  # fmt: skip
        click_box(page, "stage1.pool")
        assert get_texts(page, ".formula tr")[1] == "8= ⌊(16+ 2 ×0−1× (2− 1) − 1) /2⌋ + 1"
        assert get_stats(page)["out"] == "8 × 8 × 8"
        page.locator("#previous").click()
        assert page.text_content("#selected-path") == "stage1.block2"


def test_narrow_drawing_scrolls_to_the_selected_box(open_page):
    with open_page("resnet50", spec("resnet50"), viewport={"width": 400, "height": 900}) as page:
        for _ in range(14):
            page.locator("#next").click()
        assert page.text_content("#selected-path") == "stage4.block2"
        left, right = page.evaluate("""(() => { const box = document.querySelector("[data-path='stage4.block2']");
            const bounds = box.getBoundingClientRect(); return [bounds.left, bounds.right] })()""")
        assert 0 <= left < right <= 400


def test_invalid_size_is_an_error(open_page):
    with open_page("resnet18", spec("resnet18")) as page:
        for text in ("5000", "0", "224.5", ""):
            page.locator("#size").fill(text)
            assert page.text_content("#size-error") == (
                "The image size must be a whole number from 1 to 1024. The page still shows 224 × 224."
            )
        page.locator("#size").fill("64")
        assert page.locator("#size-error").is_hidden()
        assert page.text_content("#total-macs") == f"{plan('resnet18', 64).macs:,}"
