"""Read mutated files of weights: only our own errors, nothing run, nothing written.

    python benchmarks/fuzz_weights.py [--files 20000] [--seed 0]

Pickles with objects (both formats of torch), a TorchScript archive, a NumPy archive, an index of shards and a config of
timm are changed at random. An audit hook reports every process, socket, import of a module that a file names, and file
that is opened for writing. The script ends with an error if there is one, or if an error is not ours.
"""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import random
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models import save_for_hf

import resnetkit as rk

FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.", "ctypes.", "shutil.",
             "os.remove", "os.rename", "os.mkdir", "os.symlink", "pickle.find_class", "exec", "compile")  # fmt: skip
WARM_UP = 200  # files; lazy imports happen here
SIZES = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "num_classes": 3}


def make_seeds(folder):
    """Write one whole file of each kind and return (name, content)."""
    model = timm.create_model("resnet18", **SIZES).eval()
    state = model.state_dict()
    content = {"state_dict": state, "args": argparse.Namespace(lr=0.1, path=pathlib.Path("a")), "best": np.float64(1)}
    content |= {"array": np.arange(3), "log": collections.defaultdict(list), "classes": ["a", "b", "c"]}
    for name, is_archive in (("archive.pth", True), ("legacy.pth", False)):
        torch.save(content, folder / name, _use_new_zipfile_serialization=is_archive)
    torch.jit.trace(model, torch.zeros(1, 3, 32, 32)).save(str(folder / "script.pt"))
    np.savez(folder / "arrays.npz", **{key: value.numpy() for key, value in state.items()})
    save_for_hf(model, folder / "hub", model_args=SIZES, safe_serialization=True)
    config = (folder / "hub" / "config.json").read_bytes()
    names = dict.fromkeys(state, "model.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": names}).encode()
    files = {name: (folder / name).read_bytes() for name in ("archive.pth", "legacy.pth", "script.pt", "arrays.npz")}
    return [*files.items(), ("hub/model.safetensors.index.json", index), ("hub/config.json", config)]


def is_own(event):
    """Tell whether resnetkit itself imports a module late or evaluates a type hint of its dataclasses."""
    frame, names = sys._getframe(), []
    while frame := frame.f_back:
        names.append(frame.f_code.co_filename)
    return event in ("exec", "compile") and any("importlib" in name or name.endswith("typing.py") for name in names)


def mutate(content, rng):
    """Change, cut out, double or replace some bytes; half of the changes are in the first 2,000 or last 2,000 bytes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        size = max(len(data), 1)
        place = rng.choice(
            [rng.randrange(size), rng.randrange(min(size, 2000)), size - 1 - rng.randrange(min(size, 2000))]
        )
        kind = rng.randrange(5)
        if kind == 0:
            data[place : place + 1] = rng.randbytes(1)
        elif kind == 1:
            del data[place : place + rng.randint(1, 20)]
        elif kind == 2:
            data[place:place] = data[place : place + rng.randint(1, 80)]
        elif kind == 3:
            data[place : place + 4] = rng.randbytes(4)
        else:
            word = rng.choice([b"cposix\nsystem\n", b"R.", b"../", b"\x85R", b"(", b"\x80\x04", b"null", b"[[", b"-1"])
            data[place : place + len(word)] = word
    return bytes(data)


def mutate_entry(content, rng):
    """Change the pickle inside an archive of torch, so that its checksums are right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(stream, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, mutate(data, rng) if entry.filename.endswith("data.pkl") else data)
    return stream.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    events, is_watching, rng = collections.Counter(), [False], random.Random(args.seed)

    def watch(event, arguments):
        is_write = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if is_watching[0] and (is_write or event.startswith(FORBIDDEN)) and not is_own(event):
            events[f"{event} {str(arguments)[:80]}"] += 1

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = make_seeds(folder)
        for path, content in seeds:
            (folder / path).write_bytes(content)
            with contextlib.suppress(rk.ResnetkitError):
                rk.load(folder / path)
        sys.addaudithook(watch)
        outcomes, start = collections.Counter(), time.time()
        for number in range(args.files):
            path, content = seeds[number % len(seeds)]
            target = folder / path
            is_inside = path == "archive.pth" and rng.random() < 0.8
            target.write_bytes(mutate_entry(content, rng) if is_inside else mutate(content, rng))
            before = set(folder.iterdir())
            is_watching[0] = number > WARM_UP
            try:
                rk.load(target if path != "hub/config.json" else target.parent)
                outcomes[path, "read"] += 1
            except rk.ResnetkitError as error:
                outcomes[path, "refused"] += 1
                assert len(str(error)) < 2000, str(error)
            finally:
                is_watching[0] = False
            assert set(folder.iterdir()) == before
            if path.startswith("hub/"):
                target.write_bytes(content)
        print(f"{args.files:,} files in {time.time() - start:.0f} seconds")
        for (path, outcome), count in sorted(outcomes.items()):
            print(f"{path}: {count:,} {outcome}")
        print("events:", dict(events.most_common(10)))
    return 1 if events else 0


if __name__ == "__main__":
    sys.exit(main())
