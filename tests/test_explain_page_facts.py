"""The page of a network without a browser: its data, its content policy, and the names that its files share."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from resnetkit.architecture import spec as s
from resnetkit.architecture.catalog import spec
from resnetkit.architecture.plan import plan
from resnetkit.errors import ResnetkitError
from resnetkit.explain.page import render_network_page
from resnetkit.explain.page_facts import build_page_data, encode_script_json, get_size_rule, plan_stride_variants
from resnetkit.html import page as html

from helpers.tiny import BASE, TINY

DYNAMIC_CLASSES = {(".", "pooled-projection"), (".", "padded-identity"), (".", "pooled-identity"), (".", "color")}


def test_output_strides_are_offered_if_dilation_can_produce_them():
    assert [variant.root.stride for variant in plan_stride_variants(spec("resnet50"))] == [32, 16, 8]
    assert [variant.root.stride for variant in plan_stride_variants(spec("resnet20"))] == [4]
    third = replace(BASE, stages=TINY["three-stages"].stages, stem=s.Stem((s.Conv(8, 3, 3),), ()))
    assert plan(third).root.stride == 18
    assert [variant.root.stride for variant in plan_stride_variants(third)] == [18]  # 6, but neither 16 nor 8
    dilated = plan_stride_variants(spec("resnet50"))[2]
    assert [stage.reduce.atrous for stage in dilated.spec.stages] == [False, False, True, True]


def test_json_cannot_end_its_script_element():
    text = "</script><!--&\u2028\u2029'\"é\ud800"
    encoded = encode_script_json({"a": text})
    assert not set("<>&\u2028\u2029é\ud800") & set(encoded)
    assert json.loads(encoded) == {"a": text}


def test_content_policy_allows_only_the_script_and_style_of_the_page():
    document = render_network_page("tiny", BASE)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', document)[1]
    digest = "'sha256-[A-Za-z0-9+/]{43}='"
    assert re.fullmatch(
        f"default-src 'none'; style-src {digest}; script-src {digest}; img-src data:; base-uri 'none'; form-action 'none'",
        policy,
    )
    assert "script-src" not in html.render_html("t", "l", [])
    assert not re.search(r"\son\w+=|\sstyle=|innerHTML|insertAdjacentHTML|document\.write", document)


def test_equal_blocks_share_one_tree():
    data = build_page_data("resnet1202", [plan(spec("resnet1202"))])
    assert len(data["trees"]) == 2 + 5  # stem and head; the first blocks of stages 2 and 3 differ from the others
    assert sum(len(part["boxes"]) for part in data["variants"][0]["parts"]) == 602


def test_operation_without_a_size_rule_is_refused():
    class OddOp:
        window = (3, 2, 1)

        def __str__(self):
            return "odd pool"

    with pytest.raises(ResnetkitError, match="no size rule for odd pool") as caught:
        get_size_rule(OddOp())
    assert caught.value.fix == "add a case to get_size_rule()"


def test_page_imports_no_torch():
    code = "import sys; from resnetkit.explain.page import render_network_page; from resnetkit.architecture.catalog import spec; render_network_page('x', spec('resnet20')); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_script_and_style_use_only_ids_and_classes_of_the_page():
    """A renamed id or class would fail silently in the style."""
    document = render_network_page("resnet50", spec("resnet50"))
    folder = Path(__file__).parents[1] / "src" / "resnetkit" / "explain"
    script, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    markup = document.replace(style, "")
    for kind, name in set(re.findall(r"(?<![\w-])([.#])([a-z][a-z-]+)(?=[^;{}]*\{)", style)) - DYNAMIC_CLASSES:
        pattern = rf'id: "{name}"|id="{name}"' if kind == "#" else rf"\b{name}\b"
        assert re.search(pattern, markup), kind + name
    for name in re.findall(r'byId\("([a-z-]+)"\)', script):
        assert f'id="{name}"' in markup, name
