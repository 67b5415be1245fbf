"""Thousands of mutated images, texts and weights raise only our own errors.

The seeds are fixed, so that a failing case can be repeated by its number.
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

from helpers.tiny import BASE

INTERESTING = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"A" * 40]


def mutate(content, rng, tokens=INTERESTING):
    """Change bytes in one to four places: random bytes, deletion, repetition, truncation, a token, a flipped bit."""
    mutated = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(len(mutated) + 1))
        length = int(min(rng.integers(1, 20), len(mutated) - start))
        match rng.integers(6):
            case 0:
                mutated[start : start + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            case 1:
                del mutated[start : start + length]
            case 2:
                mutated[start:start] = mutated[start : start + length]
            case 3:
                del mutated[start:]
            case 4:
                token = tokens[rng.integers(len(tokens))]
                mutated[start : start + len(token)] = token
            case 5:
                if length:
                    mutated[start] ^= 1 << int(rng.integers(8))
    return bytes(mutated)


def encode_images():
    """Yield a small image of each format, and of a few rarer kinds."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    image, deep = Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        *((image, {"format": kind}) for kind in FORMATS),
        (image, {"format": "JPEG", "progressive": True, "exif": exif}),
        (image.convert("CMYK"), {"format": "JPEG"}),
        (image.quantize(8), {"format": "PNG", "transparency": 1}),
        (image.convert("LA"), {"format": "PNG"}),
        (deep, {"format": "PNG"}),
        (image, {"format": "WEBP", "save_all": True, "append_images": [image.rotate(90)]}),
        (image, {"format": "GIF", "save_all": True, "append_images": [image.rotate(90)]}),
    ]
    for source, options in kinds:
        buffer = io.BytesIO()
        source.save(buffer, **options)
        yield buffer.getvalue()


@pytest.mark.parametrize("seed", range(12))
def test_mutated_images(seed):
    content = list(encode_images())[seed]
    for number in range(300):
        case = mutate(content, np.random.default_rng([seed, number]))
        try:
            image = decode(case)
        except ImageError as error:
            assert error.what, number
            assert error.where == ("the given bytes",), number
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
}


@pytest.mark.parametrize("name", TEXTS)
def test_mutated_texts(name):
    make, read = TEXTS[name]
    check_mutated_texts(make(), read, ord(name[0]))


def test_mutated_results(digits_run):
    text = (digits_run / "results.json").read_text()
    check_mutated_texts(text, lambda text: from_json(Results, text), ord("r"))


def check_mutated_texts(text, read, seed):
    for number in range(500):
        case = mutate(text.encode(), np.random.default_rng([seed, number]), WORDS).decode("utf-8", "replace")
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
            (folder / name / f"{i}.png").write_bytes(next(encode_images()))
    rows = [f'{name}/{i}.png,"{name}",train' for name in ("ant", "bee") for i in range(3)]
    content = "\n".join(["path,label,part", *rows, ""]).encode()
    marks = [b",", b";", b"\t", b'"', b"\r", b"\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"../", b"/etc/passwd", b"x" * 300]
    table = folder / "labels.csv"
    for number in range(600):
        table.write_bytes(mutate(content, np.random.default_rng([3, number]), marks))
        try:
            data = open_dataset(table)
        except DataError as error:
            assert str(table) in error.where, number
        else:
            assert 0 < len(data.classes) <= 7, number


def test_mutated_options(cli, monkeypatch, tmp_path):
    """Try options of the command line up to the point where a run would start."""
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
    rng, codes = np.random.default_rng(4), set()
    for number in range(60):
        settings = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.integers(1, 4))]
        words = [word for setting in settings for word in ("--set", setting)]
        code, out, err = cli("train", "digits", "--model", str(rng.choice(list(CATALOG)[:5])), "--print-config", *words)
        codes.add(code)
        assert code in (0, 2), (number, words, err)
        assert "Traceback" not in err, number
        assert bool(out) == (code == 0), number
    assert codes == {0, 2}
    assert list(tmp_path.iterdir()) == []


def test_mutated_run_folders(digits_run):
    """Mutate each file of a run folder in turn."""
    files = [path for path in digits_run.rglob("*") if path.suffix in (".toml", ".json", ".jsonl")]
    for seed, path in enumerate(sorted(files)):
        content = path.read_bytes()
        for number in range(40):
            path.write_bytes(mutate(content, np.random.default_rng([seed, number]), WORDS))
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
    """Return a small network as safetensors and as pickles of both formats of torch."""
    stages = tuple(replace(stage, blocks=1) for stage in BASE.stages)
    model = rk.build(replace(BASE, stages=stages, head=Linear(3)))
    table = TORCHVISION.map_tensors(model.plan)
    state = {table[key]: value for key, value in model.state_dict().items()}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    return {"x.safetensors": to_bytes(state), "x.pth": new.getvalue(), "x.th": old.getvalue()}


@pytest.mark.parametrize(("name", "cases"), [("x.safetensors", 3000), ("x.pth", 600), ("x.th", 600)])
def test_mutated_weights(tmp_path, name, cases):
    content = weights_files()[name]
    header_size = 8 + int.from_bytes(content[:8], "little") if name == "x.safetensors" else 6000  # of the pickles
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
        rng = np.random.default_rng([9, number])
        size = header_size if name == "x.safetensors" or number % 4 else len(content)
        case = mutate(content[:size], rng, words) + content[size:]
        path.write_bytes(case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NaN or infinite values, and of invalid escapes
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
        for number in range(200):
            (folder / name).write_bytes(mutate(content, np.random.default_rng([seed, number]), WORDS))
            try:
                rk.load(folder)
            except ResnetkitError as error:
                assert error.exit_code in (2, 4), (name, number)
        (folder / name).write_bytes(content)
