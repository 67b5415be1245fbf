"""Grad-CAM against captum, the strongest channels against hooks, and their page in a browser."""

import base64
import io
import re
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
from resnetkit.explain.grad_cam_page import apply_colormap, render_grad_cam_page
from resnetkit.network.inference import PixelNormalizer
from resnetkit.prediction.inputs import ImageInput

from helpers.tiny import TINY

NETWORKS = ["basic-b", "bottleneck", "plain", "silu-grey", "group-norm", "imagenet-stem", "three-stages"]
MARKUP_NAMES = ("<b>bold</b>", '"><script>alert(1)</script>', "plain")


@pytest.fixture(scope="module")
def image():
    """The bytes of a noisy PNG."""
    pixels = np.random.default_rng(0).integers(0, 255, (37, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def build_network(name, seed=1):
    """A network whose norms have statistics that differ from the initial ones."""
    model = rk.build(TINY[name], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def make_batch(model, explanation):
    """The input that prediction would make of the same pixels."""
    normalize = PixelNormalizer(model.card.preparation, torch.device("cpu"))
    return normalize(torch.from_numpy(explanation.pixels.copy())[None])


def get_class_index(prediction):
    return int(prediction.label.removeprefix("class "))


@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_equal_those_of_captum(name, image):
    attr = pytest.importorskip("captum.attr")
    model = build_network(name)
    explanation = explain_image(model, image, top=5)
    inputs = make_batch(model, explanation).requires_grad_()
    last_stage = model.get_submodule(explanation.stages[-1].path)
    assert len(explanation.predictions) == 5
    for prediction in explanation.predictions:
        target = get_class_index(prediction)
        expected = attr.LayerGradCam(model, last_stage).attribute(inputs, target=target, relu_attributions=True)
        np.testing.assert_allclose(prediction.heatmap, expected[0, 0].detach().numpy(), rtol=0, atol=1e-6)
    assert any(prediction.heatmap.max() > 1e-3 for prediction in explanation.predictions)


@pytest.mark.parametrize("name", NETWORKS)
def test_heatmap_before_an_average_is_the_class_activation_map(name, image):
    """With an average and a linear layer as head, Grad-CAM is CAM (arXiv 1610.02391, section 3.1)."""
    model = build_network(name)
    explanation = explain_image(model, image, top=5)
    path = explanation.stages[-1].path
    with torch.no_grad():
        features = model.extract_features(make_batch(model, explanation), [path])[path][0]
    for prediction in explanation.predictions:
        weights = model.head.linear.weight[get_class_index(prediction)].detach()
        expected = torch.einsum("c,chw->hw", weights, features).relu() / features[0].numel()
        np.testing.assert_allclose(prediction.heatmap, expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_equal_those_of_predict(name, image):
    model = build_network(name)
    (expected,) = rk.predict(ImageInput("x", image), model, top=3, device="cpu")
    predictions = explain_image(model, image).predictions
    assert [prediction.label for prediction in predictions] == [label for label, _ in expected.top]
    probabilities = [prediction.probability for prediction in predictions]
    np.testing.assert_allclose(probabilities, [probability for _, probability in expected.top], atol=1e-5)
    assert len(explain_image(model, image, top=100).predictions) == 5


@pytest.mark.parametrize("name", NETWORKS)
def test_strongest_channels_equal_those_of_hooks(name, image):
    model = build_network(name)
    explanation = explain_image(model, image, n_maps=4)
    outputs = {}
    hooks = [
        part.register_forward_hook(lambda _, __, output, path=path: outputs.update({path: output[0].detach().numpy()}))
        for path, part in model.named_children()
        if path.startswith("stage")
    ]
    model(make_batch(model, explanation))
    for hook in hooks:
        hook.remove()
    assert [stage.path for stage in explanation.stages] == list(outputs)
    for stage, output in zip(explanation.stages, outputs.values(), strict=True):
        means = output.mean((1, 2))
        assert stage.channels == len(output)
        assert [channel.index for channel in stage.strongest] == np.argsort(-means)[:4].tolist()
        for channel in stage.strongest:
            assert channel.mean == pytest.approx(means[channel.index], abs=1e-5)
            np.testing.assert_allclose(channel.values, output[channel.index], atol=1e-5)
    first_stage = explain_image(model, image, n_maps=100).stages[0]
    assert len(first_stage.strongest) == explanation.stages[0].channels


def test_network_is_not_changed(image):
    model = build_network("basic-b").train()
    model.stage1.eval()
    model.stem.requires_grad_(False)
    model.head.linear.weight.grad = torch.ones_like(model.head.linear.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    explain_image(model, image)
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert list(grads) == ["head.linear.weight"]
    assert (grads["head.linear.weight"] == 1).all()
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in model.modules())


def test_modes_are_restored_after_an_error(image):
    model = build_network("basic-b").train()
    model.stage1 = torch.nn.Sequential(torch.nn.Conv2d(99, 1, 1))
    with pytest.raises(RuntimeError):
        explain_image(model, image)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_explanation_is_independent_of_the_grad_mode(grad_mode, image):
    expected = explain_image(build_network("basic-b"), image)
    with grad_mode():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        explanation = explain_image(build_network("basic-b"), image)  # created in that mode, too
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    assert any(prediction.heatmap.any() for prediction in explanation.predictions)
    for prediction, expected_prediction in zip(explanation.predictions, expected.predictions, strict=True):
        np.testing.assert_array_equal(prediction.heatmap, expected_prediction.heatmap)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_maps_are_fp32_for_every_dtype(dtype, image):
    explanation = explain_image(build_network("basic-b").to(dtype), image)
    assert explanation.predictions[0].heatmap.dtype == explanation.stages[0].strongest[0].values.dtype == np.float32


@pytest.mark.parametrize("crop", [(16, 16), (9, 40), (61, 33), (1, 1)])
def test_every_image_size_is_explained(crop, image):
    model = build_network("imagenet-stem")
    model.card = replace(
        model.card, preparation=replace(model.card.preparation, resize=max(crop), crop=crop), classes=tuple("abcde")
    )
    explanation = explain_image(model, image)
    assert explanation.pixels.shape == (*crop, 3)
    assert explanation.predictions[0].label in "abcde"
    assert explanation.predictions[0].heatmap.shape == explanation.stages[-1].strongest[0].values.shape
    assert render_grad_cam_page(explanation, "n", "f").count("data:image/jpeg;base64,") == 4 + 8 + 8


@pytest.mark.parametrize("name", ["pooled", "headless"])
def test_network_without_a_classifier_is_refused(name, image):
    model = rk.build(TINY[name])
    with pytest.raises(UsageError, match="Grad-CAM needs a network with a classifier") as caught:
        explain_image(model, image)
    assert caught.value.where == (model.card.name,)
    assert caught.value.fix == "use one, or get the features with rk.embed"


@pytest.mark.parametrize(("name", "count"), [("top", 0), ("n_maps", -1)])
def test_count_below_one_is_refused(name, count, image):
    with pytest.raises(UsageError, match=f"{name} is {count}") as caught:
        explain_image(build_network("basic-b"), image, **{name: count})
    assert (caught.value.where, caught.value.fix) == ((name,), f"set {name} to 1 or more")


def test_unreadable_image_and_unsupported_channels_are_refused(image):
    with pytest.raises(ImageError, match="not a supported image"):
        explain_image(build_network("basic-b"), b"no image")
    with pytest.raises(UsageError) as caught:
        explain_image(rk.build(replace(TINY["basic-b"], input=(2, 16, 16))), image)
    assert caught.value.what == "this network takes 2 channels, but an image has 1 (grayscale) or 3 (RGB)"
    assert caught.value.fix == "call the network from Python with tensors"


def test_last_stage_without_a_map_is_refused(image):
    model = build_network("basic-b")
    model.stage2 = torch.nn.Sequential(model.stage2, torch.nn.Flatten())
    message = r"Grad-CAM needs a map of 4 dimensions \(N C H W\), got 2 from the last stage"
    with pytest.raises(UsageError, match=message) as caught:
        explain_image(model, image)
    assert caught.value.fix == "flatten or average the map in the head instead"


# ---------------------------------------------------------------------------------------------------------- the page


def make_explanation(values, probability=0.5):
    """An explanation of a gray image with these values as the heatmap and as a channel."""
    values = np.array(values, np.float32)
    pixels = np.full((14, 14, 3), 128, np.uint8)
    stage = StageActivations("stage1", 9, (ChannelActivation(7, 1.25, values),))
    return ImageExplanation(pixels, (PredictedClass("cat", probability, values.clip(0)),), (stage,))


def decode_images(document):
    """All images of a page as arrays."""
    encoded = re.findall(r"data:image/jpeg;base64,([^\"]+)", document)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))), float) for jpeg in encoded]


def test_heatmap_is_drawn_over_the_image():
    original, overlay, channel = decode_images(render_grad_cam_page(make_explanation([[0, 0], [0, 4]]), "n", "f"))
    highest, lowest = apply_colormap(np.array(1.0)), apply_colormap(np.array(0.0))
    assert original.shape == overlay.shape == (448, 448, 3)
    assert abs(original - 128).max() <= 2
    assert overlay[440, 440] == pytest.approx(0.25 * 128 + 0.75 * highest, abs=6)
    for corner in ((8, 8), (8, 440), (440, 8)):
        assert overlay[corner] == pytest.approx(0.8 * 128 + 0.2 * lowest, abs=6)
    assert channel.shape == (224, 224, 3)
    assert channel[180, 180] == pytest.approx(highest, abs=6)
    assert channel[20, 20] == pytest.approx(lowest, abs=6)


def test_lightness_of_the_colormap_rises_evenly():
    colors = apply_colormap(np.linspace(0, 1, 101)) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(_RGB_TO_CONES).T
    lightness = np.cbrt(cones) @ [0.2104542553, 0.7936177850, -0.0040720468]  # bottosson.github.io/posts/oklab
    assert np.diff(lightness) == pytest.approx(0.008, abs=0.003)
    assert (lightness[0], lightness[-1]) == pytest.approx((0.16, 0.96), abs=0.01)


_RGB_TO_CONES = [
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
]


@pytest.mark.parametrize(
    "values", [[[0, 0]], [[-1, -2]], [[3, 3]], [[np.nan, 1]], [[np.inf, -np.inf]], [[3e38, -3e38]]]
)
def test_every_map_can_be_drawn(values):
    document = render_grad_cam_page(make_explanation(values), "n", "f")
    assert len(decode_images(document)) == 3
    if max(values[0]) <= 0:
        assert "probability 50.0%, no region supports it" in document


def test_page_describes_what_it_shows(image):
    document = render_grad_cam_page(explain_image(build_network("silu-grey"), image), "silu", "cat.png")
    assert "<h1>silu: Grad-CAM of cat.png</h1>" in document
    assert re.search(r'class="lead">Top prediction: class \d, with probability \d+\.\d%\.', document)
    assert "Grad-CAM of the top predictions" in document
    assert "17x15 pixels, as the network receives it" in document
    assert "the last map is 9x8, so one of its pixels covers about 2x2 pixels of the image" in document
    assert "It does not explain why." in document
    assert re.search(r"stage2, channel \d+<span>mean -?\d", document)
    assert "stage2: 8 of 16 channels, 9x8" in document
    assert len(decode_images(document)) == 4 + 8 + 8


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_page_in_a_browser(browser, tmp_path, image, width, scheme):
    model = rk.build(TINY["basic-b"], classes=[*MARKUP_NAMES, "x" * 300])
    explanation = explain_image(model, image, top=4)
    document = render_grad_cam_page(explanation, MARKUP_NAMES[0], f"{MARKUP_NAMES[1]}{'y' * 300}.png")
    assert not any(name in document for name in MARKUP_NAMES[:2])
    assert "&lt;b&gt;bold&lt;/b&gt;" in document
    assert "<script" not in document
    path = tmp_path / "page.html"
    path.write_text(document, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme)
    page = context.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.goto(path.as_uri())
    assert messages == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.locator("figure").count() == 5 + 8 + 8
    assert page.locator("svg").count() == 1
    context.close()
