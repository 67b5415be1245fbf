"""The page of a network: its script must say what Python's plan says, for every size, and nothing may be fetched."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import spec
from resnetkit.architecture.operations import MaxPoolOp
from resnetkit.architecture.plan import Node, Plan, plan
from resnetkit.architecture.summary import describe_shortcut, format_summary_row, list_summary_rows
from resnetkit.errors import ResnetkitError, SpecError
from resnetkit.explain import page as page_module
from resnetkit.explain.page import render_network_page
from resnetkit.explain.page_facts import build_page_data, encode_script_json, get_size_rule, plan_stride_variants
from resnetkit.explain.why import why
from resnetkit.html import page as html
from test_pages import NASTY

from helpers.tiny import BASE, TINY

DEEP_POOL = replace(
    BASE, stem=s.Stem((s.Conv(8, 3, 2),), (s.MaxPool(2, 2),)), stages=(*BASE.stages, *TINY["three-stages"].stages[2:])
)
NETWORKS = {
    **TINY,
    "deep-pool": DEEP_POOL,
    **{name: spec(name) for name in ("resnet18", "resnet50", "resnet20", "plain34", "resnet18_a")},
}
SIZES = (1, 32, 33, 97, 224, 333)


class Opened:
    """A page in a browser without a network, and all that it complained of or asked for."""

    def __init__(self, browser, path, text, **context):
        path.write_text(text, encoding="utf-8")
        self.context = browser.new_context(
            offline=True, reduced_motion="reduce", **{"viewport": {"width": 1280, "height": 900}, **context}
        )
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.url = path.as_uri()

    def __enter__(self):
        return self.page

    def __exit__(self, kind, *rest):
        self.context.close()
        if kind is None:
            assert self.complaints == []
            assert self.requests == [self.url]


@pytest.fixture
def opened(browser, tmp_path):
    return lambda name, network, **context: Opened(
        browser, tmp_path / "page.html", render_network_page(name, network), **context
    )


def texts(there, selector):
    return there.evaluate(
        "(selector) => [...document.querySelectorAll(selector)].map(one => one.textContent)", selector
    )


def typeset(shape):
    return " × ".join(map(str, shape))


def planned(made, size):
    """The plan of a variant for another image; None where its map vanishes."""
    try:
        return plan(made.spec, size)
    except SpecError:
        return None


def assert_totals(there, made):
    shown = {key: there.text_content(f"#total-{key}") for key in ("params", "macs", "depth", "field", "activations")}
    assert shown == {
        "params": f"{made.params:,}", "macs": f"{made.macs:,}", "depth": str(made.depth),
        "field": str(made.receptive_field), "activations": f"{made.activations:,}",
    }  # fmt: skip
    assert there.text_content("#note-activations") == f"{made.activations * 4 / 2**20:.1f} MiB in fp32"


def assert_parts(there, made):
    told = [
        [*format_summary_row(row)[:2], typeset(row.output), *format_summary_row(row)[3:]]
        for row in list_summary_rows(made)
    ]
    shown = there.evaluate(
        "[...document.querySelectorAll('#parts tbody tr')].map(row => [...row.children].map(c => c.textContent))"
    )
    assert shown == told
    captions = there.evaluate(
        "[...document.querySelectorAll('.caption')].map(c => [...c.querySelectorAll('text')].map(t => t.textContent))"
    )
    shares = {row.path: f"{row.macs_share:.1%} of MACs" if row.macs else "" for row in list_summary_rows(made)}
    assert captions == [[row.path, typeset(row.output), shares[row.path]] for row in list_summary_rows(made)]


EVERYTHING = """([stride, sides]) => {
    const told = (part) => [part.path, part.behind.shape, part.behind.field, part.behind.stride, part.params, part.macs, part.activations];
    const whole = (part) => part.parts && part.parts.length === 1 && part.parts[0].path === part.path;  // stem and head
    const walk = (part) => whole(part) ? walk(part.parts[0]) : [told(part), ...(part.parts || []).flatMap(walk)];
    return walk(measure(stride, sides));
}"""


@pytest.mark.parametrize("name", NETWORKS)
def test_the_script_says_what_the_plan_says(opened, name):
    """Read from the page after its controls were moved; every place and operation, too, as the script worked it out."""
    with opened(name, NETWORKS[name]) as there:
        for i, made in enumerate(plan_stride_variants(NETWORKS[name])):
            if there.locator("[name=stride]").count():
                there.locator("[name=stride]").nth(i).check()
            there.click("#own")
            for size in (None, *SIZES):
                if size:
                    there.fill("#size", str(size))
                expected = made if size is None else planned(made, size)
                assert there.is_visible("#vanished") == (expected is None)
                if expected is None:
                    continue
                assert_totals(there, expected)
                assert_parts(there, expected)
                everything = there.evaluate(EVERYTHING, [i, list(expected.input[1:])])
                assert everything == [
                    [p.path, list(p.output), p.receptive_field, p.stride, p.params, p.macs, p.activations]
                    for p in expected.parts.values()
                ]


def test_a_map_that_vanishes_is_said_in_a_sentence(opened):
    with pytest.raises(SpecError, match=r"stem\.pool: came a map of 1x1"):
        plan(DEEP_POOL, 2)
    with opened("deep", DEEP_POOL) as there:
        there.fill("#size", "2")
        said = "For an image of 2 × 2 the map vanishes at stem.pool: of 1 × 1 nothing is left. Choose a larger image."
        assert there.text_content("#vanished") == said
        assert there.text_content("#total-macs") == "—"
        assert not there.is_visible("#details")
        there.fill("#size", "40")
        assert not there.is_visible("#vanished")
        assert there.text_content("#total-macs") == f"{plan(DEEP_POOL, 40).macs:,}"
        there.fill("#size", "")  # while somebody types, nothing changes
        assert there.text_content("#total-macs") == f"{plan(DEEP_POOL, 40).macs:,}"


def test_the_slider_and_the_number_go_together(opened):
    with opened("resnet18", spec("resnet18")) as there:
        there.locator("#slider").fill("161")
        assert there.input_value("#size") == "161"
        assert there.text_content("#total-macs") == f"{plan(spec('resnet18'), 161).macs:,}"
        assert there.text_content("#image-shape") == "3 × 161 × 161"
        there.click("#own")
        assert there.input_value("#slider") == "224"


def figures(there):
    pairs = there.evaluate(
        "[...document.querySelectorAll('.facts > div')].map(one => [...one.children].map(c => c.textContent))"
    )
    return dict(pairs)


@pytest.mark.parametrize(("name", "path", "size"), [
    ("resnet50", "stage2.block1", 97), ("resnet20", "stage3.block1", 45), ("plain34", "stage4.block2", 224), ("basic-d", "stage2.block1", 33),
    ("resnet50", "stem", 130), ("resnet50", "head", 130), ("bottleneck", "stage1.block2", 32),
])  # fmt: skip
def test_a_click_opens_the_details_of_a_block(opened, name, path, size):
    made = plan(NETWORKS[name], size)
    part = made[path]
    with opened(name, NETWORKS[name]) as there:
        there.fill("#size", str(size))
        there.locator(f".box[data-path='{path}'] .face").click()
        assert there.text_content("#chosen") == path
        shown = figures(there)
        assert shown == {
            "in": typeset(part.input), "out": typeset(part.output), "params": f"{part.params:,}", "MACs": f"{part.macs:,}",
            "share of MACs": f"{part.macs / made.macs:.1%}", "activations": f"{part.activations:,}",
            "receptive field": f"{part.receptive_field} px", "stride": f"{part.stride} px",
        }  # fmt: skip
        lines = there.evaluate(
            "[...document.querySelectorAll('#more .operations tbody tr')].map(row => [row.dataset.path, ...[...row.children].slice(1).map(c => c.textContent)])"
        )
        assert lines == [
            [n.path, str(n.op).replace("->", "→"), typeset(n.output), f"{n.params:,}" if n.params else "",
             f"{n.macs:,}" if n.macs else "", f"{n.macs / made.macs:.1%}" if n.macs else ""]
            for n in part.nodes
        ]  # fmt: skip


def test_the_formula_has_the_numbers_of_the_operation_that_was_chosen(opened):
    with opened("resnet50", spec("resnet50")) as there:
        there.fill("#size", "97")
        there.locator(".box[data-path='stage2.block1'] .face").click()
        there.get_by_role("button", name="branch.conv2").click()
        line = "document.querySelectorAll('.formula tr')[{}].textContent"
        assert there.evaluate(line.format(0)) == "out= ⌊(in+ 2 ×p−d× (k− 1) − 1) /s⌋ + 1"
        assert there.evaluate(line.format(1)) == "13= ⌊(25+ 2 ×1−1× (3− 1) − 1) /2⌋ + 1"
        assert "It has the stride of its block, 2." in there.text_content("#formula")
        assert "Said for images of 3 × 224 × 224:" in there.text_content("#formula")
        there.get_by_role("button", name="add").click()
        assert "Two maps of 13 are added" in there.text_content("#formula")
        there.locator(".box[data-path='head'] .face").click()
        assert "becomes a vector" in there.text_content("#formula")


def test_an_image_that_is_no_square_has_two_formulas(opened):
    with opened("oblong", TINY["imagenet-stem"]) as there:
        there.locator(".box[data-path='stem'] .face").click()
        assert texts(there, ".formula caption") == ["height", "width"]
        assert texts(there, ".formula tr:nth-child(2) .out") == ["17", "20"]
        there.fill("#size", "33")
        assert texts(there, ".formula caption") == []


def test_the_reason_of_a_shortcut_is_pythons_and_says_its_size(opened):
    made = plan(spec("resnet50"))
    with opened("resnet50", spec("resnet50")) as there:
        there.locator(".box[data-path='stage2.block1'] .face").click()
        reason = made["stage2.block1.shortcut"].reason.replace("->", "→")
        assert there.text_content(".cause") == f"whyprojection — {reason}"
        sentence = why(made, "stage2.block1.shortcut").splitlines()[0].replace("->", "→")
        assert sentence in texts(there, ".telling p")
        assert there.locator(".telling .said").count() == 0
        there.fill("#size", "97")
        assert there.text_content(".cause").startswith("why (for 3 × 224 × 224)projection")
        assert texts(there, ".telling .said") == ["Said for images of 3 × 224 × 224:"]
        assert sentence in texts(there, ".telling p")


def test_the_receptive_field_is_drawn_over_the_picture(opened):
    with opened("resnet50", spec("resnet50")) as there:
        square = "(() => { const r = document.querySelector('.field'); return ['x', 'y', 'width', 'height'].map(k => Number(r.getAttribute(k))) })()"
        there.locator(".box[data-path='stage2.block4'] .face").click()
        side = plan(spec("resnet50"))["stage2.block4"].receptive_field * 240 / 224
        assert there.evaluate(square) == pytest.approx([120 - side / 2, 120 - side / 2, side, side])
        assert "sees 91 × 91 pixels. The next one looks 8 further." in there.text_content("figcaption")
        there.locator(".box[data-path='stage4.block3'] .face").click()
        assert there.evaluate(square) == [0, 0, 240, 240]
        assert "427 × 427 pixels, larger than the image" in there.text_content("figcaption")


def test_keys_move_from_box_to_box(opened):
    with opened("resnet18", spec("resnet18")) as there:
        there.locator(".box[data-path='stage1.block1']").focus()
        for key, path in [
            ("Enter", "stage1.block1"), ("ArrowRight", "stage1.block2"), ("ArrowRight", "stage2.block1"), ("ArrowLeft", "stage1.block2"),
            ("ArrowDown", "stage1"), ("ArrowRight", "stage2"), ("ArrowUp", "stage2.block1"), ("End", "head"), ("ArrowRight", "head"),
            ("Home", "stem"), ("ArrowLeft", "stem"), (" ", "stem"),
        ]:  # fmt: skip
            there.keyboard.press(key)
            assert there.evaluate("document.activeElement.dataset.path") == path
            assert there.text_content("#chosen") == path
        assert there.get_attribute("#details header > div", "aria-live") == "polite"
        assert there.locator(".box[tabindex='0']").count() == there.locator(".caption[tabindex='0']").count() == 1
        assert there.locator(".box[role=button], .caption[role=button]").count() == 10 + 6
        there.keyboard.press("ArrowRight")
        focus = "getComputedStyle(document.activeElement.querySelector('.reach')).strokeWidth"
        assert there.evaluate(focus) == "2px"
        label = there.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label == "stage1.block1, 64 × 56 × 56, 12.7% of MACs"
        there.locator("#next").click()
        assert there.text_content("#chosen") == "stage1.block2"
        there.locator("#previous").click()
        assert there.text_content("#chosen") == "stage1.block1"
        there.get_by_role("button", name="stage3", exact=True).click()
        there.locator("#next").click()
        assert there.text_content("#chosen") == "stage3.block1"


@pytest.mark.parametrize("name", ["resnet50", "resnet20", "basic-d", "subsampled", "plain"])
def test_shortcuts_are_told_apart_by_colour_and_by_line(opened, name):
    network = NETWORKS[name]
    with opened(name, network) as there:
        drawn = there.evaluate("""[...document.querySelectorAll('.box')].map(box => [box.dataset.path, [...box.querySelectorAll('.way')].map(way => {
            const style = getComputedStyle(way); return [way.getAttribute('class'), style.stroke, style.strokeDasharray] })])""")
        made = plan(network)
        identities, adapters = set(), set()
        for path, ways in drawn:
            shortcut = made.parts.get(f"{path}.shortcut")
            assert len(ways) == (shortcut is not None)
            for kind, colour, dash in ways:
                assert kind == "way " + describe_shortcut(shortcut).replace(" ", "-")
                (adapters if shortcut.nodes else identities).add((colour, dash))
        assert {c for c, _ in identities}.isdisjoint(c for c, _ in adapters)
        assert {d for _, d in identities}.isdisjoint(d for _, d in adapters)
        assert len(texts(there, ".key li")) == len({k for _, ways in drawn for k, *_ in ways}) + 1


def test_boxes_are_to_scale(opened):
    with opened("resnet50", spec("resnet50")) as there:
        there.locator("[name=stride]").nth(1).check()
        tall = "(path) => Number(document.querySelector(`.box[data-path='${path}'] .face`).getAttribute('height'))"
        wide = tall.replace("height", "width")
        assert (there.evaluate(tall, "stage1.block1") / there.evaluate(tall, "stage4.block1")) ** 2 == pytest.approx(
            56 / 14
        )
        assert (there.evaluate(wide, "stage4.block1") / there.evaluate(wide, "stage1.block1")) ** 2 == pytest.approx(
            2048 / 256, rel=0.01
        )


def test_output_strides_are_offered_where_dilation_can_meet_them():
    assert [made.root.stride for made in plan_stride_variants(spec("resnet50"))] == [32, 16, 8]
    assert [made.root.stride for made in plan_stride_variants(spec("resnet20"))] == [4]
    third = replace(BASE, stages=TINY["three-stages"].stages, stem=s.Stem((s.Conv(8, 3, 3),), ()))
    assert plan(third).root.stride == 18
    assert [made.root.stride for made in plan_stride_variants(third)] == [18]  # 6, but neither 16 nor 8
    dilated = plan_stride_variants(spec("resnet50"))[2]
    assert [stage.reduce.atrous for stage in dilated.spec.stages] == [False, False, True, True]


def test_sentences_follow_the_output_stride(opened):
    with opened("resnet50", spec("resnet50")) as there:
        there.locator("[name=stride]").nth(2).check()
        assert there.text_content("#said") == "Said for images of 3 × 224 × 224 and output stride 8."
        assert texts(there, "#whys dd")[5] == why(plan_stride_variants(spec("resnet50"))[2], "stage4").splitlines()[0]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_wide_and_narrow_light_and_dark(opened, width, scheme):
    with opened("resnet50", spec("resnet50"), viewport={"width": width, "height": 900}, color_scheme=scheme) as there:
        assert there.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        there.locator(".caption[data-path='stage2']").click()
        assert there.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        ground = there.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 25, 31)")
        assert "stage2.block2 to block4, each" in texts(there, "#more .operations tbody td:first-child")


def test_without_scripts_the_drawing_the_table_and_the_sentences_stand(opened):
    made = plan(spec("resnet18"))
    with opened("resnet18", spec("resnet18"), java_script_enabled=False) as there:
        assert there.locator(".box").count() == 10
        assert there.locator("#marks").is_visible()
        assert there.locator("#parts tbody tr").count() == 6
        assert not there.is_visible("#controls")
        assert not there.is_visible("#details")
        assert "Scripts are off" in there.locator("noscript").inner_html()
        assert there.locator("#whys dd").nth(2).text_content() == why(made, "stage1").splitlines()[0]
        assert there.locator("#total-macs").text_content() == f"{made.macs:,}"
        assert there.locator("svg[role=img]").count() == 1


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_text(opened, name):
    made = render_network_page(name, TINY["basic-b"])
    if "<" in name:
        assert name not in made.replace("<script>const", "")
    with opened(name, TINY["basic-b"]) as there:
        assert there.text_content("h1") == there.title() == name
        assert there.evaluate("facts.name") == name


def test_json_cannot_leave_its_element():
    nasty = "</script><!--&\u2028\u2029'\"é\ud800"
    text = encode_script_json({"a": nasty})
    assert not set("<>&\u2028\u2029é\ud800") & set(text)
    assert json.loads(text) == {"a": nasty}


def test_the_policy_names_the_script_and_the_style():
    made = render_network_page("tiny", BASE)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', made)[1]
    digest = "'sha256-[A-Za-z0-9+/]{43}='"
    assert re.fullmatch(
        f"default-src 'none'; style-src {digest}; script-src {digest}; img-src data:; base-uri 'none'; form-action 'none'",
        policy,
    )
    assert "script-src" not in html.render_html("t", "l", [])
    assert not re.search(r"\son\w+=|\sstyle=|innerHTML|insertAdjacentHTML|document\.write", made)


def test_a_script_that_is_not_the_pages_own_does_not_run(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        render_network_page("tiny", BASE).replace("</body>", "<script>document.title = 'changed'</script></body>"),
        encoding="utf-8",
    )
    there = browser.new_context(offline=True).new_page()
    there.goto(path.as_uri())
    assert there.title() == "tiny"
    there.context.close()


def test_large_networks_stay_small_and_usable(opened):
    assert len(render_network_page("resnet152", spec("resnet152")).encode()) < 300_000
    assert len(render_network_page("resnet1202", spec("resnet1202")).encode()) < 600_000
    with opened("resnet1202", spec("resnet1202")) as there:
        assert there.locator(".box").count() == 602
        there.fill("#size", "45")
        assert there.text_content("#total-macs") == f"{plan(spec('resnet1202'), 45).macs:,}"
        there.locator(".box[data-path='stage3.block200'] .face").click()
        assert there.text_content("#chosen") == "stage3.block200"
        there.keyboard.press("ArrowLeft")
        assert there.text_content("#chosen") == "stage3.block199"
        outside = "[...document.querySelectorAll('.face')].filter(b => b.x.baseVal.value < 0 || b.x.baseVal.value + b.width.baseVal.value > 1184).length"
        assert there.evaluate(outside) == 0


def test_equal_blocks_share_one_tree():
    told = build_page_data("resnet1202", [plan(spec("resnet1202"))])
    assert (
        len(told["trees"]) == 2 + 5
    )  # stem and head; the first blocks of stages 2 and 3 differ from those behind them
    assert sum(len(part["boxes"]) for part in told["strides"][0]["parts"]) == 602


def test_a_node_that_stands_directly_in_a_stage_is_a_box_of_its_own(opened, monkeypatch):
    """Its role says nothing to the page, and nothing has to be known of it but its operation."""
    first, *rest = (made := plan(BASE)).root.children[1:]
    shape = (8, 8, 8)
    pool = Node("stage1.pool", "stem-pool", MaxPoolOp(2, 2), first.output, shape, first.receptive_field + 1, 2)
    stage = replace(
        first, children=(*first.children, pool), output=shape, receptive_field=pool.receptive_field, stride=2
    )
    ahead = made.root.children[0]
    root = replace(made.root, children=(ahead, stage), output=shape, receptive_field=stage.receptive_field, stride=2)
    assert len(rest) == 2
    monkeypatch.setattr(page_module, "plan_stride_variants", lambda spec: (Plan(BASE, root),))
    with opened("pooled", BASE) as there:
        assert there.evaluate("boxes.map(box => box.dataset.path)") == [
            "stem",
            "stage1.block1",
            "stage1.block2",
            "stage1.pool",
        ]
        there.locator(".box[data-path='stage1.pool'] .face").click()
        assert (
            there.evaluate("[...document.querySelectorAll('.formula tr')][1].textContent")
            == "8= ⌊(16+ 2 ×0−1× (2− 1) − 1) /2⌋ + 1"
        )
        assert figures(there)["out"] == "8 × 8 × 8"
        there.locator("#previous").click()
        assert there.text_content("#chosen") == "stage1.block2"


def test_an_operation_without_a_rule_is_refused():
    class Odd:
        window = (3, 2, 1)

        def __str__(self):
            return "odd pool"

    with pytest.raises(ResnetkitError, match="no size rule for odd pool"):
        get_size_rule(Odd())


def test_it_needs_no_torch():
    code = "import sys; from resnetkit.explain.page import render_network_page; from resnetkit.architecture.catalog import spec; render_network_page('x', spec('resnet20')); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_on_a_narrow_screen_the_drawing_follows_what_is_chosen(opened):
    with opened("resnet50", spec("resnet50"), viewport={"width": 400, "height": 900}) as there:
        for _ in range(14):
            there.locator("#next").click()
        assert there.text_content("#chosen") == "stage4.block2"
        left, right = there.evaluate("""(() => { const box = document.querySelector("[data-path='stage4.block2']");
            const at = box.getBoundingClientRect(); return [at.left, at.right] })()""")
        assert 0 <= left < right <= 400


def test_a_size_that_is_none_says_so(opened):
    with opened("resnet18", spec("resnet18")) as there:
        for wrong in ("5000", "0", "224.5", ""):
            there.locator("#size").fill(wrong)
            assert there.text_content("#vanished").startswith(
                "The size is a whole number from 1 to 1024; what is shown is for 224"
            )
        there.locator("#size").fill("64")
        assert there.locator("#vanished").is_hidden()
        assert there.text_content("#total-macs") == f"{plan('resnet18', 64).macs:,}"
