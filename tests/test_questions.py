"""Words of other libraries' code and questions, answered with the numbers of a network."""

import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import resnetkit as rk
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import Section, plan
from resnetkit.errors import UsageError
from resnetkit.explain.network_facts import FACTS
from resnetkit.explain.topics import find_topic, match_question, read_topics
from resnetkit.explain.why import answer_query, why
from resnetkit.weights.layer_aliases import ALIASED_LIBRARIES, translate_path

from helpers.tiny import TINY

NETWORKS = ("resnet50", "resnet18", "resnet20", "keras_resnet50", "plain34", "resnext50_32x4d", "resnetv2_50", "vgg16")
WORDS = ["downsample", "expansion", "inplanes", "planes", "_make_layer", "layers", "stride", "bias", "padding",
         "view", "flatten", "conv_block", "identity_block", "bn1", "relu", "maxpool", "avgpool", "fc", "softmax",
         "kaiming", "inplace", "groups", "dilation", "bottleneck", "basicblock", "skip", "residual"]  # fmt: skip
QUESTIONS = tomllib.loads((Path(__file__).parent / "questions.toml").read_text())["questions"]


@cache
def plan_network(name):
    return plan((CATALOG | TINY)[name])


def answer(name, query):
    return answer_query(plan_network(name), query)


def split_sentences(text):
    return re.split(r"(?<=[.:?])\s+(?=[A-Z`])", text)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("word", WORDS)
def test_word_has_an_answer_with_the_numbers_of_the_network(name, word):
    result = answer(name, word)
    text, source = result.text.split("\n")[:2]
    sentences = split_sentences(text)
    assert 3 <= len(sentences) <= 6
    assert max(len(sentence.split()) for sentence in sentences) <= 24
    assert source == f"source: {result.topic.source}"
    own = " ".join(
        sentence for sentence in sentences if re.match("Here|This network|The .* of this network|No ", sentence)
    )
    assert re.search(r"\d", own) or "no " in own.lower()
    assert answer(name, f"self.{word}()").topic == result.topic


@pytest.mark.parametrize("name", [*TINY, "resnet152", "seresnet50", "resnetblur50", "resnet50d", "keras_resnet50v2"])
def test_each_topic_has_short_sentences_for_each_network(name):
    for topic in read_topics():
        sentences = split_sentences(topic.answer(plan_network(name)))
        assert 3 <= len(sentences) <= 7, topic.name
        assert max(len(sentence.split()) for sentence in sentences) <= 24, topic.name
        assert not re.search(r"[{}]|None [^,.]|\b1 \w+s have", " ".join(sentences)), topic.name


@pytest.mark.parametrize(
    ("query", "topic"),
    [
        ("F.relu", "relu"),
        ("nn.ReLU(inplace=True)", "relu"),
        ("ResNet._make_layer", "_make_layer"),
        ("Bottleneck.expansion", "expansion"),
        ("skip-connection", "skip"),
        ("Batch-Norm", "bn1"),
        ("`downsample`?", "downsample"),
        ("Downsample", "downsample"),
        ("bias=False", "bias"),
        ("layer9.0.downsample", None),
    ],
)
def test_words_as_they_are_written_in_code(query, topic):
    assert getattr(find_topic(query), "name", None) == topic


def test_words_name_one_topic_and_facts_are_used():
    words = [word for topic in read_topics() for word in topic.words]
    assert len(words) == len(set(words))
    for topic in read_topics():
        assert {find_topic(word) for word in topic.words} == {topic}
        assert topic.source
        assert topic.question.endswith("?")
    assert {name for topic in read_topics() for name in re.findall(r"\{(\w+)\}", topic.text)} == set(FACTS)


# ------------------------------------------------------------------------------------------------ independent oracles


@cache
def build_theirs(name):
    with torch.device("meta"):
        return getattr(torchvision.models, name)()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_numbers_are_those_of_torchvision(name):
    theirs = build_theirs(name)
    stages = [getattr(theirs, f"layer{i}") for i in (1, 2, 3, 4)]
    blocks = [block for stage in stages for block in stage]
    downsamples = [block.downsample for block in blocks if block.downsample is not None]
    assert f"{len(downsamples)} of {len(blocks)} shortcuts" in why(name, "downsample")
    planes = [stage[0].bn1.num_features if name != "resnext50_32x4d" else 64 * 2**i for i, stage in enumerate(stages)]
    channels = [plane * blocks[0].expansion for plane in planes]
    assert f"{channels[0]}, {channels[1]}, {channels[2]} and {channels[3]}" in why(name, "expansion")
    inputs = [stage[0].conv1.in_channels for stage in stages]
    assert f"receive {inputs[0]}, {inputs[1]}, {inputs[2]} and {inputs[3]} channels" in why(name, "inplanes")
    assert str([len(stage) for stage in stages]) in why(name, "layers")
    convolutions = [module for module in theirs.modules() if isinstance(module, nn.Conv2d)]
    biased = sum(module.bias is not None for module in convolutions)
    assert f"{biased} of {len(convolutions)} convolutions" in why(name, "bias")
    for module in convolutions:
        assert f"{module.kernel_size[0]}x{module.kernel_size[0]} pads {module.padding[0]}" in why(name, "padding")
    norms = [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]
    assert f"{len(norms)} norms with {2 * sum(norm.num_features for norm in norms):,} params" in why(name, "bn1")
    std = (2 / (theirs.conv1.out_channels * 49)) ** 0.5
    assert f"{std:.4f}" in why(name, "kaiming")
    grouped = [module for module in convolutions if module.groups > 1]
    assert (f"Here {len(grouped)} of the convolutions have groups" in why(name, "groups")) == bool(grouped)
    assert f"{theirs.fc.in_features:,} features to 1,000 logits" in why(name, "fc")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_activations_are_the_calls_of_torchvisions_relus(name):
    theirs, calls = getattr(torchvision.models, name)().eval(), []
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    with torch.no_grad():
        theirs(torch.zeros(1, 3, 32, 32))
    assert f"This network has {len(calls)} activations" in why(name, "relu")
    runs = calls.count(theirs.layer1[0].relu)
    assert f"torchvision runs this one module {runs} times in the block" in why(name, "layer1.0.relu")
    assert calls.count(theirs.relu) == 1


def test_numbers_that_the_papers_state():
    assert "4 conv_blocks and 12 identity_blocks" in why("keras_resnet50", "conv_block")
    assert "7 identities and 2 padded identities" in why("resnet20", "option a")
    assert "each of 32 groups sees 4 of 128 channels" in why("resnext50_32x4d", "cardinality")
    assert "no shortcuts" in why("plain34", "skip")
    assert "1 for the stem + 18 convolutions of branches + 1 linear layer = 20" in why("resnet20", "depth")
    assert "both cost 115,605,504 MACs" in why("resnet18", "channels")  # 3x3, 64 at 56x56 and 512 at 7x7
    assert 9 * 64 * 64 * 56 * 56 == 9 * 512 * 512 * 7 * 7 == 115_605_504
    assert "19% of the MACs of VGG-19" in why("plain34", "vgg")  # the paper says 18%, of 3.6 and 19.6 billion


# ---------------------------------------------------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("why channels double where the map halves", "channels"),
        ("why shortcuts help", "degradation"),
        ("is `downsample` a built-in and why is it called like a function", "downsample"),
        ("why no ReLU before the addition", "no relu before the addition"),
        ("why no bias", "bias"),
        ("why fan_out", "kaiming"),
        ("why in-place", "inplace"),
        ("what the 4 of a bottleneck is", "expansion"),
        ("why pooling only in the stem", "maxpool"),
        ("what differs from VGG and a plain network", "vgg"),
        ("what Keras's two blocks are here", "conv_block"),
        ("What is the difference between ResNet-18 and ResNet-50?", "basicblock"),
        ("why is the stride in the 3x3", "v1.5"),
    ],
)
@pytest.mark.parametrize("name", NETWORKS[:6])
def test_question_in_few_words_is_understood(name, question, topic):
    assert answer(name, question).topic.name == topic


def test_there_are_forty_questions():
    assert len({question["text"] for question in QUESTIONS}) >= 40


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["text"][:40])
def test_question_of_a_forum_is_answered(question):
    result = answer("resnet50", question["text"])
    assert result.topic.name == question["topic"]
    for text in question["contains"]:
        assert text in result.text


@pytest.mark.parametrize(
    "question",
    ["what is the weather today", "how do I install cuda on ubuntu", "best pizza in town", "how to export to onnx",
     "does it support yolo", "learning rate schedule", "why is my loss nan"],
)  # fmt: skip
def test_other_questions_have_no_answer(question):
    with pytest.raises(UsageError) as caught:
        answer("resnet50", question)
    assert str(caught.value) == (
        f"error: no answer to this question is known\nwhere: {question}\n"
        "fix: `resnetkit explain MODEL --questions` lists words and questions"
    )


@given(st.text(max_size=60))
def test_any_text_is_answered_or_refused(text):
    try:
        assert answer("basic-b", text).text
    except UsageError as error:
        assert error.fix
    match_question(text)


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("library", ALIASED_LIBRARIES)
def test_each_name_that_is_printed_is_understood(name, library):
    network_plan = plan_network(name)
    try:
        aliases = {path: translate_path(network_plan, path, library) for path in network_plan.parts}
    except UsageError:
        return  # this library has no such network
    for path, alias in aliases.items():
        if alias and path != "stem":  # conv1 is also a convolution, which is meant more often
            assert answer_query(network_plan, alias).path == path


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("self.layer1[0].downsample", "stage1.block1.shortcut"),
        ("model.layer4[-1]", "stage4.block3"),
        ("net.layer4[-1].conv3.weight", "stage4.block3.branch.conv3"),
        ("model.layer2[3]", "stage2.block4"),
        ("resnet50.layer3[0].downsample[1]", "stage3.block1.shortcut.norm"),
        ("encoder.stages.0.layers.0.shortcut", "stage1.block1.shortcut"),
        ("model.resnet.encoder.stages.3.layers.2", "stage4.block3"),
        ("conv2_block1 (conv_block)", "stage1.block1"),
        ("conv2_block1_0_conv/kernel:0", "stage1.block1.shortcut.conv"),
        ("`layer1.0.conv1`", "stage1.block1.branch.conv1"),
        ("backbone.body.layer4.2.conv3", "stage4.block3.branch.conv3"),
        ("encoder.layer1.0.conv1", "stage1.block1.branch.conv1"),
        ("module.layer1.0.bn2.running_var", "stage1.block1.branch.norm2"),
    ],
)
def test_names_as_they_are_written_in_code(query, path):
    assert answer("resnet50", query).path == path


@pytest.mark.parametrize("query", ["res3b_branch1", "bn3b_branch1", "layer2.1.downsample", "conv3_block2_0_conv"])
def test_layer_that_an_identity_lacks(query):
    result = answer("resnet50", query)
    assert result.path == "stage2.block2.shortcut"
    assert result.text.startswith(f"This network has no layer {query}: the shortcut of its block is the identity.\n")
    padded = answer("resnet20", "layer2.0.downsample.0")
    assert padded.text.startswith(
        "This network has no layer layer2.0.downsample.0: the shortcut of its block is a padded"
    )


@pytest.mark.parametrize(
    ("query", "fix"),
    [
        ("downsmaple", "did you mean downsample?"),
        ("expnsion", "did you mean expansion?"),
        ("layer1.0.downsamples", "did you mean layer1.0.downsample?"),
        ("stage2.block1.shortcutt", "did you mean stage2.block1.shortcut?"),
        ("layer9", "the network has stem, stage1 to stage4, head; "),
        ("stage3.block9.branch", "stage3 has stage3.block1 to block6; "),
        ("layer3.7.conv1", "stage3 has stage3.block1 to block6; "),
        ("self.layer1[7].conv1", "the network has stem"),
        ("xyzzy", "the network has stem"),
        ("Inplane", "did you mean inplanes?"),
    ],
)
def test_hint_after_an_unknown_name_is_right(query, fix):
    with pytest.raises(UsageError) as caught:
        answer("resnet50", query)
    assert caught.value.what == "this network has no such path, and no such word is known"
    assert caught.value.fix.startswith(fix)
    if not fix.startswith("did"):
        assert caught.value.fix.endswith("; `resnetkit explain MODEL --questions` lists words and questions")


# ----------------------------------------------------------------------------------------------------- Python, command


def test_why_takes_a_name_a_spec_a_plan_or_a_model(tmp_path):
    spec = rk.spec("resnet20")
    model = rk.build(spec)
    rk.save(model, tmp_path / "model")
    wrapped = nn.DataParallel(model), torch.compile(model, backend="eager")
    sources = ("resnet20", spec, rk.plan(spec), model, *wrapped, tmp_path / "model", str(tmp_path / "model"))
    assert len({rk.why(source, "stage2.block1.shortcut") for source in sources}) == 1
    assert rk.why("resnet20", "stage2.block1.shortcut").startswith("Branch and input differ: channels 16 -> 32")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            nn.ReLU(),
            "error: a ReLU is not a network of resnetkit\nwhere: why\nfix: load it first: why(load(model), ...)",
        ),
        ("resnet5O", "error: unknown network 'resnet5O'\nwhere: model\nfix: did you mean resnet50?"),
        (3, "error: a int is not a model\nwhere: model\nfix: name a file or a folder"),
    ],
)
def test_why_refuses_other_sources(source, message):
    with pytest.raises(UsageError) as caught:
        rk.why(source, "stem")
    assert str(caught.value) == message


def test_command_prints_the_question_that_it_understood(cli):
    code, out, _ = cli("explain", "resnet50", "--why", "why double channels")
    assert code == 0
    assert out.splitlines()[0] == "why double channels: Why do the channels double where the map halves?"
    out = cli("explain", "resnet50", "--why", "Why no bias?")[1]
    assert out.splitlines()[0] == "Why no bias? Why do the convolutions have no bias?"
    document = json.loads(cli("explain", "resnet50", "--why", "fc", "--why", "stage1", "--json")[1])
    assert set(document["why"]) == {"fc", "stage1"}
    assert document["why"]["fc"]["path"] == "head.linear"
    assert document["why"]["fc"]["question"] == "What is `fc`, and how does the number of classes change?"
    assert "question" not in document["why"]["stage1"]


def test_command_lists_the_questions(cli):
    code, out, _ = cli("explain", "resnet50", "--questions")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 1 + len(read_topics()))
    assert lines[1].startswith("downsample")
    assert "cannot be combined" in cli("explain", "resnet50", "--questions", "--why", "stem")[2]


def test_facts_hold_where_parts_are_missing():
    assert "no stem" in why("vgg16", "conv1")
    assert "none of these options" in why("keras_resnet50v2", "option a")
    assert isinstance(plan_network("headless").root, Section)
    assert "no linear layer" in answer("headless", "fc").text
    assert "no norms" in answer("no-norm", "bn1").text
    assert "no layer" not in answer("basic-b", "stem").text


def test_a_query_is_text():
    with pytest.raises(UsageError) as caught:
        rk.why("resnet18", 5)
    assert (caught.value.what, caught.value.fix) == ("got 5 as a query", "give a path, a word or a question as text")
