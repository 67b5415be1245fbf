"""Thousands of mutated pictures, texts and weights: nothing but our own errors comes out.

20,000 pictures and texts, 20,000 files with weights; the seeds are fixed, so that a case that fails can be found again by its number.
"""

import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as to_bytes

import resnetkit as rk
from resnetkit.architecture.card import Card, make_card
from resnetkit.architecture.catalog import CATALOG, spec
from resnetkit.architecture.rules import check_spec
from resnetkit.architecture.spec import Linear, Network
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, ImageError, ResnetkitError, UsageError
from resnetkit.images.decode import FORMATS, decode
from resnetkit.serialization import from_json, from_toml, to_json, to_toml
from resnetkit.training.recipe import MultiStep, Recipe, build_default_recipe
from resnetkit.training.recipe_limits import check_recipe
from resnetkit.training.report import build_run_report
from resnetkit.training.run_folder import Results, read_run
from resnetkit.weights.dialects import TORCHVISION
from test_pages import a_run

from helpers.tiny import BASE

INTERESTING = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"A" * 40]


def mutated(content, draw, tokens=INTERESTING):
    """One to four changes: bytes flipped, cut out, doubled, moved, replaced by something that often breaks readers."""
    found = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        at = int(draw.integers(len(found) + 1))
        length = int(min(draw.integers(1, 20), len(found) - at))
        match draw.integers(6):
            case 0:
                found[at : at + length] = draw.integers(0, 256, length, dtype=np.uint8).tobytes()
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length]
            case 3:
                del found[at:]
            case 4:
                token = tokens[draw.integers(len(tokens))]
                found[at : at + len(token)] = token
            case 5:
                if length:
                    found[at] ^= 1 << int(draw.integers(8))
    return bytes(found)


def pictures():
    """A small one of each format, and a few of its rarer sorts."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    image, deep = Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    sorts = [
        *((image, {"format": kind}) for kind in FORMATS),
        (image, {"format": "JPEG", "progressive": True, "exif": exif}),
        (image.convert("CMYK"), {"format": "JPEG"}),
        (image.quantize(8), {"format": "PNG", "transparency": 1}),
        (image.convert("LA"), {"format": "PNG"}),
        (deep, {"format": "PNG"}),
        (image, {"format": "WEBP", "save_all": True, "append_images": [image.rotate(90)]}),
        (image, {"format": "GIF", "save_all": True, "append_images": [image.rotate(90)]}),
    ]
    for one, options in sorts:
        buffer = io.BytesIO()
        one.save(buffer, **options)
        yield buffer.getvalue()


@pytest.mark.parametrize("seed", range(12))
def test_mutated_pictures(seed):
    content = list(pictures())[seed]
    for number in range(1000):
        case = mutated(content, np.random.default_rng([seed, number]))
        try:
            image = decode(case)
        except ImageError as error:
            assert error.what, number
            assert error.where == ("the bytes given",), number
        else:
            assert image.mode == "RGB", number


WORDS = [b'"', b"[", b"]", b"{", b"}", b"=", b"-1", b"1e999", b"nan", b"true", b"null", b"9" * 25, b"kind", b"\n", b"\xc3\x28",
         b"fine-tune", b"[[stages]]", b"\\u0000", b'"stages"', b"0.0"]  # fmt: skip


def spec_text():
    return to_toml(BASE)


def recipe_text():
    recipe = build_default_recipe("flowers/", "resnet18", 224, 500)
    return to_toml(replace(recipe, schedule=MultiStep((3.0, 7.5))))


TEXTS = {
    "network": (spec_text, lambda text: check_spec(from_toml(Network, text))),
    "recipe": (recipe_text, lambda text: check_recipe(from_toml(Recipe, text))),
    "card": (lambda: to_json(make_card("tiny", BASE, ("a", "b"))), lambda text: from_json(Card, text)),
    "results": (lambda: to_json(a_run().results), lambda text: from_json(Results, text)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_mutated_texts(name):
    make, read = TEXTS[name]
    content = make().encode()
    for number in range(1500):
        case = mutated(content, np.random.default_rng([ord(name[0]), number]), WORDS).decode("utf-8", "replace")
        try:
            read(case)
        except ResnetkitError as error:
            assert isinstance(error, UsageError), number
            assert 0 < len(str(error)) < 100_000, number


def test_mutated_tables(tmp_path):
    folder = tmp_path / "d"
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(next(pictures()))
    rows = [f'{name}/{i}.png,"{name}",train' for name in ("ant", "bee") for i in range(3)]
    content = "\n".join(["path,label,part", *rows, ""]).encode()
    marks = [b",", b";", b"\t", b'"', b"\r", b"\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"../", b"/etc/passwd", b"x" * 300]
    table = folder / "labels.csv"
    for number in range(2000):
        table.write_bytes(mutated(content, np.random.default_rng([3, number]), marks))
        try:
            data = open_dataset(table)
        except DataError as error:
            assert str(table) in error.where, number
        else:
            assert 0 < len(data.classes) <= 7, number


def test_mutated_options(cli, monkeypatch, tmp_path):
    """Words of the command line, up to the point where a run would begin."""
    monkeypatch.chdir(tmp_path)
    keys = ["epochs", "batch_size", "optimizer.lr", "schedule", "schedule.warmup", "augment", "start", "start.norm_stats",
            "bad_files.max_fraction", "input_size", "preparation.mean", "data", "seed"]  # fmt: skip
    values = [
        "1",
        "-1",
        "1e999",
        "nan",
        "[3, 16, 16]",
        "[]",
        "{}",
        "scratch",
        "skip",
        '"',
        "triangle",
        "true",
        "9" * 40,
    ]
    draw, codes = np.random.default_rng(4), set()
    for number in range(120):
        settings = [f"{draw.choice(keys)}={draw.choice(values)}" for _ in range(draw.integers(1, 4))]
        words = [word for setting in settings for word in ("--set", setting)]
        code, out, err = cli(
            "train", "digits", "--model", str(draw.choice(list(CATALOG)[:5])), "--print-config", *words
        )
        codes.add(code)
        assert code in (0, 2), (number, words, err)
        assert "Traceback" not in err, number
        assert bool(out) == (code == 0), number
    assert codes == {0, 2}
    assert list(tmp_path.iterdir()) == []


def test_the_public_functions_take_what_is_left_of_a_run_folder(tmp_path, digits_run):
    """Each file of a run folder mutated in turn."""
    files = [path for path in digits_run.rglob("*") if path.suffix in (".toml", ".json", ".jsonl")]
    for seed, path in enumerate(sorted(files)):
        content = path.read_bytes()
        for number in range(100):
            path.write_bytes(mutated(content, np.random.default_rng([seed, number]), WORDS))
            try:
                assert "<script" not in build_run_report([read_run(digits_run)])
            except ResnetkitError as error:
                assert error.exit_code in (2, 4), (path.name, number)
        path.write_bytes(content)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "mine.toml").write_text(to_toml(BASE))
    settings = {"epochs": 1, "precision": "fp32", "input_size": [1, 8, 8]}
    run = rk.train("digits", folder / "mine.toml", out=folder / "run", settings=settings)
    results = json.loads((run.path / "results.json").read_text())
    for column in results["evaluation"]["predictions"].values():
        del column[12:]
    (run.path / "results.json").write_text(json.dumps(results, indent=1))
    return run.path


def weights_files():
    """A small network as safetensors, as pickles of both archives, and as a folder of transformers."""
    model = rk.build(replace(BASE, head=Linear(3)))
    table = TORCHVISION.map_tensors(model.plan)
    state = {table[key]: value for key, value in model.state_dict().items()}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    return {"x.safetensors": to_bytes(state), "x.pth": new.getvalue(), "x.th": old.getvalue()}


@pytest.mark.parametrize(("name", "cases"), [("x.safetensors", 14_000), ("x.pth", 2500), ("x.th", 2500)])
def test_mutated_weights(tmp_path, name, cases):
    content = weights_files()[name]
    header = content[: 8 + int.from_bytes(content[:8], "little")] if name == "x.safetensors" else b""
    words = [
        b'"F32"',
        b'"I64"',
        b"[0,0]",
        b"[99999999999,1]",
        b'"shape"',
        b"data_offsets",
        b"conv1.weight",
        *INTERESTING,
    ]
    path, codes = tmp_path / name, set()
    for number in range(cases):
        draw = np.random.default_rng([9, number])
        case = mutated(header, draw, words) + content[len(header) :] if header else mutated(content, draw, words)
        path.write_bytes(case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that are not finite, and of odd escapes
            try:
                rk.load(path)
            except ResnetkitError as error:
                codes.add(error.exit_code)
                assert len(str(error).splitlines()) <= 8, number
    assert codes == {4}


def test_mutated_configs_of_transformers(tmp_path):
    model = rk.build(replace(spec("resnet18"), stages=spec("resnet18").stages[:1], head=Linear(2)), classes=["a", "b"])
    folder = rk.convert(model, "hf", tmp_path / "hf")
    for seed, name in enumerate(("config.json", "preprocessor_config.json")):
        content = (folder / name).read_bytes()
        for number in range(500):
            (folder / name).write_bytes(mutated(content, np.random.default_rng([seed, number]), WORDS))
            try:
                rk.load(folder)
            except ResnetkitError as error:
                assert error.exit_code in (2, 4), (name, number)
        (folder / name).write_bytes(content)
