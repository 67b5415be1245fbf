"""Hints after a wrong option, command or model: right or absent."""

import importlib
import itertools
import re
import shlex
from functools import cache

import pytest

from resnetkit.architecture.catalog import CATALOG, find_similar_network
from resnetkit.cli import COMMANDS
from resnetkit.commands.arguments import list_parameters
from resnetkit.commands.synonyms import find_command, read_synonyms, suggest_option

ROWS = read_synonyms()["options"]
NAMES = sorted({name for row in ROWS for name in row["names"]})


@cache
def get_parameters(command):
    return list_parameters(importlib.import_module(f"resnetkit.commands.{command}").Options)


def list_options(command):
    return {parameter.option for parameter in get_parameters(command) if not parameter.argument.is_positional}


def list_arguments(command):
    return {parameter.label for parameter in get_parameters(command) if parameter.argument.is_positional}


def suggest(command, name):
    options = [option[2:] for option in list_options(command)]
    return suggest_option(command, f"--{name}", options, list_arguments(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_hint_names_what_the_command_has(command):
    """An option of a sentence exists, too, unless the sentence names the command that has it."""
    for name in NAMES:
        hint = suggest(command, name)
        if hint == f"resnetkit {command} --help":
            continue
        argument = re.fullmatch(r"give it as the argument (\w+), without an option", hint)
        if argument:
            assert argument[1] in list_arguments(command), hint
        for words in re.findall(r"`resnetkit ([^`]*)`", hint):
            assert set(re.findall(r"--[a-z-]+", words)) <= list_options(words.split()[0]), hint
        if "torchrun" not in hint:
            own = re.sub("`[^`]*`", "", hint)
            assert set(re.findall(r"--[a-z][a-z-]*", own)) <= list_options(command), (command, name, hint)


def test_each_target_is_used_by_a_command():
    for row in ROWS:
        for target in row["targets"]:
            commands = row.get("commands", COMMANDS)
            hints = {suggest(command, name) for command in commands
                     for name in row["names"]}  # fmt: skip
            assert any(target in hint for hint in hints) or any(
                target.split()[0] in list_options(command) for command in commands
            ), target
        assert set(row.get("commands", [])) <= set(COMMANDS)


@pytest.mark.parametrize("setting", sorted({t for row in ROWS for t in row["targets"] if t.startswith("--set ")}))
def test_each_setting_is_accepted(setting, cli):
    assert cli("train", "digits", *shlex.split(setting), "--print-config")[0] == 0


def test_there_are_sixty_names_of_other_tools():
    own = set().union(*(list_options(command) for command in COMMANDS))
    assert len({name for name in NAMES if f"--{name}" not in own}) >= 60


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        ("train x --img 224", "use --set 'input_size=[3,224,224]'"),
        ("explain resnet50 --imgsz 320", "use --size"),
        ("predict x --image-size 320", "the image size is that of the model; no option of this command changes it"),
        ("train x --optimizer adam", "use --set optimizer.kind=adam-w"),
        ("train x --optimiser=adam", "use --set optimizer.kind=adam-w"),
        ("train x --loss mse", "the loss is cross entropy; no option changes it"),
        ("predict x --weights a.pth", "use --model FILE"),
        ("explain --weights a.pth", "give it as the argument MODEL, without an option"),
        ("train x --pretrained", "use --model FILE"),
        ("train x --arch resnet18", "use --model FILE"),
        ("train x --lr0 0.1", "use --lr"),
        ("train x --learning-rate 0.1", "use --lr"),
        ("train x --force", "no option overwrites files; name another output, or delete the old one first"),
        ("train x --overwrite", "no option overwrites files; name another output, or delete the old one first"),
        ("train x --num-classes 10", "the classes are those of the data; no option sets them"),
        ("train x --num_classes 10", "the classes are those of the data; no option sets them"),
        ("modify m o --num-classes 10", "use --classes"),
        ("train x --wd 1e-4", "use --set optimizer.weight_decay=0.0005"),
        ("train x -b 32", "use --batch-size"),
        ("train x --batch 32", "use --batch-size"),
        ("train x --batch_size 32", "did you mean --batch-size?"),
        ("predict x --batch 32", "no option sets the batch size of this command; resnetkit chooses it"),
        ("train x -j 4", "use --workers"),
        ("evaluate m x --workers 4", "no option sets the threads of this command; resnetkit uses all cores"),
        ("predict x --threshold 0.5", "no option sets a threshold; each class is printed with its probability"),
        ("train x --gpu 0", "use --device cuda"),
        ("explain resnet50 --device cuda:0", "this command has no option for a device"),
        ("train x --epoch 3", "use --epochs"),
        ("train x --epohcs 3", "did you mean --epochs?"),
        ("explain resnet50 --wyh stem", "did you mean --why?"),
        ("train x --checkpoint-step 3", "did you mean --checkpoint-steps?"),
        ("train x --foo 3", "resnetkit train --help"),
        ("doctor --lr 3", "resnetkit doctor --help"),
        ("train x --weigths a.pth", "resnetkit train --help"),
        ("train x --check", "resnetkit train --help"),
    ],
)
def test_hint_after_an_unknown_option(arguments, fix, cli):
    code, _, err = cli(*shlex.split(arguments))
    option = next(word for word in shlex.split(arguments) if word.startswith("-"))
    command = arguments.split()[0]
    assert (code, err) == (2, f"error: unknown option: {option}\nwhere: resnetkit {command}\nfix: {fix}\n")


def test_commands_of_other_tools():
    rows = read_synonyms()["commands"]
    words = list(itertools.chain.from_iterable(row["names"] for row in rows))
    assert len(words) == len(set(words))
    assert not set(words) & set(COMMANDS)
    assert {row["target"] for row in rows} <= set(COMMANDS)
    assert [find_command(word) for word in ("fit", "test", "list_models", "Benchmark", "nonsense")] == [
        "train", "evaluate", "models", "optimize", None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "fix"),
    [("fit", "did you mean train?"), ("infer", "did you mean predict?"), ("zzz", "one of models, explain"),
     ("trian", "did you mean train?"), ("segment", "one of models, explain")],
)  # fmt: skip
def test_hint_after_an_unknown_command(command, fix, cli):
    code, _, err = cli(command)
    assert (code, err.splitlines()[0]) == (2, f"error: unknown command: {command!r}")
    assert err.splitlines()[1].startswith(f"fix: {fix}")


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("resnet-50", "resnet50"),
        ("ResNet50", "resnet50"),
        ("ResNet50_Weights", "resnet50"),
        ("microsoft/resnet-50", "resnet50"),
        ("resnet50.a1_in1k", "resnet50"),
        ("resnet5O", "resnet50"),
        ("renset50", "resnet50"),
        ("wideresnet50_2", "wide_resnet50_2"),
        ("resnext50-32x4d", "resnext50_32x4d"),
        ("resnet42", ""),
        ("resnet51", ""),
        ("efficientnet_b0", ""),
        ("vit_base_patch16_224", ""),
        ("densenet121", ""),
    ],
)
def test_hint_after_an_unknown_network(name, network, cli):
    assert find_similar_network(name) == network
    code, _, err = cli("explain", name)
    assert code == 2
    assert ("did you mean" in err) == bool(network)
    if network:
        assert err.splitlines()[-1] == f"fix: did you mean {network}?"


@pytest.mark.parametrize("name", CATALOG)
def test_each_network_is_like_itself(name):
    assert find_similar_network(name.replace("_", "-").upper()) in (name, name.replace("_", ""))
