"""What a network sees: Grad-CAM against captum's, the strongest maps against hooks, and the page in a browser."""

import base64
import io
import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit as rk
from resnetkit.errors import ImageError, UsageError
from resnetkit.explain.grad_cam import (
    ChannelActivation,
    ImageExplanation,
    PredictedClass,
    StageActivations,
    explain_image,
)
from resnetkit.explain.grad_cam_page import _apply_colormap, render_grad_cam_page
from resnetkit.network.inference import PixelNormalizer
from resnetkit.prediction.inputs import ImageInput

from helpers.tiny import TINY

NETWORKS = ["basic-b", "bottleneck", "plain", "silu-grey", "group-norm", "imagenet-stem", "three-stages"]
NASTY = ("<b>bold</b>", '"><script>alert(1)</script>', "plain")


@pytest.fixture(scope="module")
def picture():
    """The bytes of a noisy PNG."""
    pixels = np.random.default_rng(0).integers(0, 255, (37, 50, 3), dtype=np.uint8)
    return png(pixels)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def a_network(name, seed=1):
    """A network whose norms have statistics that are not those of the start."""
    model = rk.build(TINY[name], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def batch(model, found):
    """The input that prediction would make of the same pixels."""
    return PixelNormalizer(model.card.preparation, torch.device("cpu"))(torch.from_numpy(found.pixels.copy())[None])


@pytest.mark.parametrize("name", NETWORKS)
def test_evidence_is_what_captum_finds(name, picture):
    attr = pytest.importorskip("captum.attr")
    model = a_network(name)
    found = explain_image(model, picture, top=5)
    x = batch(model, found).requires_grad_()
    last = model.get_submodule(found.stages[-1].path)
    assert len(found.predictions) == 5
    for answer in found.predictions:
        number = int(answer.label.removeprefix("class "))
        expected = attr.LayerGradCam(model, last).attribute(x, target=number, relu_attributions=True)
        np.testing.assert_allclose(answer.heatmap, expected[0, 0].detach().numpy(), rtol=0, atol=1e-6)
    assert any(answer.heatmap.max() > 1e-3 for answer in found.predictions)


@pytest.mark.parametrize("name", NETWORKS)
def test_evidence_behind_an_average_is_the_class_activation_map(name, picture):
    """Where the head is an average and a linear layer, Grad-CAM is CAM (arXiv 1610.02391, section 3.1): no gradient."""
    model = a_network(name)
    found = explain_image(model, picture, top=5)
    with torch.no_grad():
        last = model.extract_features(batch(model, found), [found.stages[-1].path])[found.stages[-1].path][0]
    for answer in found.predictions:
        weights = model.head.linear.weight[int(answer.label.removeprefix("class "))].detach()
        expected = torch.einsum("c,chw->hw", weights, last).relu() / last[0].numel()
        np.testing.assert_allclose(answer.heatmap, expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_those_of_prediction(name, picture):
    model = a_network(name)
    (told,) = rk.predict(ImageInput("x", picture), model, top=3, device="cpu")
    found = explain_image(model, picture)
    assert [answer.label for answer in found.predictions] == [label for label, _ in told.top]
    np.testing.assert_allclose([a.probability for a in found.predictions], [share for _, share in told.top], atol=1e-5)
    assert len(explain_image(model, picture, top=100).predictions) == 5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_strongest_maps_are_those_of_the_stages(name, picture):
    model = a_network(name)
    found = explain_image(model, picture, n_maps=4)
    outputs = OrderedDict()
    hooks = [
        part.register_forward_hook(lambda _, __, output, path=path: outputs.update({path: output[0].detach().numpy()}))
        for path, part in model.named_children()
        if path.startswith("stage")
    ]
    model(batch(model, found))
    for hook in hooks:
        hook.remove()
    assert [stage.path for stage in found.stages] == list(outputs)
    for stage, output in zip(found.stages, outputs.values(), strict=True):
        means = output.mean((1, 2))
        assert stage.channels == len(output)
        assert [one.index for one in stage.strongest] == np.argsort(-means)[:4].tolist()
        for one in stage.strongest:
            assert one.mean == pytest.approx(means[one.index], abs=1e-5)
            np.testing.assert_allclose(one.values, output[one.index], atol=1e-5)
    assert len(explain_image(model, picture, n_maps=100).stages[0].strongest) == found.stages[0].channels


def test_the_network_is_left_as_it_is(picture):
    model = a_network("basic-b").train()
    model.stage1.eval()
    model.stem.requires_grad_(False)
    model.head.linear.weight.grad = torch.ones_like(model.head.linear.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    asked = [parameter.requires_grad for parameter in model.parameters()]
    explain_image(model, picture)
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert list(grads) == ["head.linear.weight"]
    assert (grads["head.linear.weight"] == 1).all()
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in model.modules())


def test_modes_are_put_back_after_an_error(picture):
    model = a_network("basic-b").train()
    model.stage1 = torch.nn.Sequential(torch.nn.Conv2d(99, 1, 1))
    with pytest.raises(RuntimeError):
        explain_image(model, picture)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_whatever_mode_the_caller_is(around, picture):
    expected = explain_image(a_network("basic-b"), picture)
    with around():
        enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = explain_image(a_network("basic-b"), picture)  # made in that mode, too
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (enabled, inference)
    assert any(answer.heatmap.any() for answer in found.predictions)
    for one, other in zip(found.predictions, expected.predictions, strict=True):
        np.testing.assert_array_equal(one.heatmap, other.heatmap)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_number(dtype, picture):
    found = explain_image(a_network("basic-b").to(dtype), picture)
    assert found.predictions[0].heatmap.dtype == found.stages[0].strongest[0].values.dtype == np.float32


@pytest.mark.parametrize("crop", [(16, 16), (9, 40), (61, 33), (1, 1)])
def test_any_size_of_image(crop, picture):
    model = a_network("imagenet-stem")
    model.card = replace(
        model.card, preparation=replace(model.card.preparation, resize=max(crop), crop=crop), classes=tuple("abcde")
    )
    found = explain_image(model, picture)
    assert found.pixels.shape == (*crop, 3)
    assert found.predictions[0].label in "abcde"
    assert found.predictions[0].heatmap.shape == found.stages[-1].strongest[0].values.shape
    assert render_grad_cam_page(found, "n", "f").count("data:image/jpeg;base64,") == 4 + 8 + 8


def test_errors_say_what_to_do(picture):
    for name in ("pooled", "headless"):
        with pytest.raises(UsageError, match="this network has no classifier") as caught:
            explain_image(rk.build(TINY[name]), picture)
        assert caught.value.where == (rk.build(TINY[name]).card.name,)
        assert caught.value.fix == "look into a network that ends in one; rk.embed gives what this one hands on"
    model = a_network("basic-b")
    for words in ({"top": 0}, {"n_maps": -1}):
        ((name, count),) = words.items()
        with pytest.raises(UsageError, match=f"{count} of them leave nothing to show") as caught:
            explain_image(model, picture, **words)
        assert (caught.value.where, caught.value.fix) == ((name,), f"{name} of 1 or more")
    with pytest.raises(ImageError, match="not a supported image"):
        explain_image(model, b"no picture")
    with pytest.raises(UsageError, match="this network sees 2 channels"):
        explain_image(rk.build(replace(TINY["basic-b"], input=(2, 16, 16))), picture)
    model.stage2.add_module("flat", torch.nn.Flatten())
    with pytest.raises(UsageError, match="hands on 2 dimensions, and evidence is found on a map of 4") as caught:
        explain_image(model, picture)
    assert caught.value.fix == "let the last stage hand on a map, and the head average it"


# ----------------------------------------------------------------------------------------------------------- the page


def by_hand(evidence, pixels=None, share=0.5):
    """Something to show, with these values as the evidence and as a map."""
    values = np.array(evidence, np.float32)
    pixels = np.full((14, 14, 3), 128, np.uint8) if pixels is None else pixels
    stage = StageActivations("stage1", 9, (ChannelActivation(7, 1.25, values),))
    return ImageExplanation(pixels, (PredictedClass("cat", share, values.clip(0)),), (stage,))


def pictures_of(made):
    """Every picture of a page, as colours."""
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", made)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))), float) for one in found]


def test_the_evidence_lies_over_the_picture_where_it_is():
    plain, over, small = pictures_of(render_grad_cam_page(by_hand([[0, 0], [0, 4]]), "n", "f"))
    assert plain.shape == over.shape == (448, 448, 3)
    assert abs(plain - 128).max() <= 2
    assert over[440, 440] == pytest.approx(0.25 * 128 + 0.75 * _apply_colormap(np.array(1.0)), abs=6)
    for corner in ((8, 8), (8, 440), (440, 8)):
        assert over[corner] == pytest.approx(0.8 * 128 + 0.2 * _apply_colormap(np.array(0.0)), abs=6)
    assert small.shape == (224, 224, 3)
    assert small[180, 180] == pytest.approx(_apply_colormap(np.array(1.0)), abs=6)
    assert small[20, 20] == pytest.approx(_apply_colormap(np.array(0.0)), abs=6)


def test_the_scale_gets_lighter_in_even_steps():
    colours = _apply_colormap(np.linspace(0, 1, 101)) / 255
    light = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cones = light @ np.array(_CONES).T
    lightness = np.cbrt(cones) @ [0.2104542553, 0.7936177850, -0.0040720468]  # bottosson.github.io/posts/oklab
    assert np.diff(lightness) == pytest.approx(0.008, abs=0.003)
    assert (lightness[0], lightness[-1]) == pytest.approx((0.16, 0.96), abs=0.01)


_CONES = [
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
]


@pytest.mark.parametrize(
    "values", [[[0, 0]], [[-1, -2]], [[3, 3]], [[np.nan, 1]], [[np.inf, -np.inf]], [[3e38, -3e38]]]
)
def test_maps_of_every_kind_can_be_shown(values):
    made = render_grad_cam_page(by_hand(values), "n", "f")
    assert len(pictures_of(made)) == 3
    if max(values[0]) <= 0:
        assert "50.0%, and no place speaks for it" in made


def test_the_page_says_what_it_shows(picture):
    made = render_grad_cam_page(explain_image(a_network("silu-grey"), picture), "silu", "cat.png")
    assert "<h1>what silu sees in cat.png</h1>" in made
    assert "17x15 pixels, as the network gets it" in made
    assert "the last map is 9x8, so that one pixel of it stands for about 2x2 of the picture" in made
    assert "does not show why" in made
    assert re.search(r"stage2, channel \d+<span>mean -?\d", made)
    assert "stage2: 8 of 16 maps, 9x8" in made
    assert len(pictures_of(made)) == 4 + 8 + 8


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_in_a_browser(browser, tmp_path, picture, width, scheme):
    model = rk.build(TINY["basic-b"], classes=[*NASTY, "x" * 300])
    made = render_grad_cam_page(explain_image(model, picture, top=4), NASTY[0], f"{NASTY[1]}{'y' * 300}.png")
    assert not any(name in made for name in NASTY[:2])
    assert "&lt;b&gt;bold&lt;/b&gt;" in made
    assert "<script" not in made
    path = tmp_path / "page.html"
    path.write_text(made, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme)
    opened = context.new_page()
    complaints = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(dialog.message))
    opened.goto(path.as_uri())
    assert complaints == []
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert opened.locator("figure").count() == 5 + 8 + 8
    assert opened.locator("svg").count() == 1
    context.close()
