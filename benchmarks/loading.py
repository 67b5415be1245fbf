"""Measure seconds and memory to build ResNet-50 with weights from a file, ours and torchvision's.

    python benchmarks/loading.py

Both get the same tensors from a warm page cache, in one process, in turns. torchvision: ``resnet50()``, ``torch.load``
of a .pth, ``load_state_dict``. Ours: ``rk.load`` of a .safetensors file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "measured" / "loading.json"
PROGRAMS = {
    "torchvision": (
        "import torch, torchvision; m = torchvision.models.resnet50(weights=None); "
        "m.load_state_dict(torch.load({pth!r}, weights_only=True)); m.eval()"
    ),
    "ours": "import resnetkit as rk; m = rk.load({safe!r})",
}
PEAK = "; print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
IMPORTS = {"torchvision": "import torch, torchvision", "ours": "import resnetkit.surgery.load"}


def measure_seconds(rounds, files):
    """Return library -> seconds of each round; the libraries take turns."""
    import torch
    import torchvision

    import resnetkit as rk

    def load_torchvision():
        model = torchvision.models.resnet50(weights=None)
        model.load_state_dict(torch.load(files["pth"], weights_only=True))
        return model.eval()

    def load_resnetkit():
        return rk.load(files["safe"])

    load_torchvision(), load_resnetkit()
    times = {"torchvision": [], "ours": []}
    for _ in range(rounds):
        for name, load in (("torchvision", load_torchvision), ("ours", load_resnetkit)):
            started = time.perf_counter()
            load()
            times[name].append(time.perf_counter() - started)
    return times


def measure_peak(name, files):
    """Return the peak memory in KiB, above that of the imports, in a process of its own."""
    outputs = [
        subprocess.run([sys.executable, "-c", code + PEAK], capture_output=True, text=True, check=True).stdout
        for code in (IMPORTS[name], PROGRAMS[name].format(**files))
    ]
    return int(outputs[1]) - int(outputs[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    import torch
    import torchvision
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        files = {"pth": f"{folder}/x.pth", "safe": f"{folder}/x.safetensors"}
        state = torchvision.models.resnet50(weights=None).state_dict()
        torch.save(state, files["pth"])
        save_file(state, files["safe"])
        size = Path(files["safe"]).stat().st_size
        times = measure_seconds(options.rounds, files)
        memory = {name: measure_peak(name, files) for name in PROGRAMS}
    ratio = statistics.median(b / a for a, b in zip(times["torchvision"], times["ours"], strict=True))
    results = {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": ratio,
        "rounds": options.rounds,
        "file_mib": size / 2**20,
        "peak_mib": {name: value / 1024 for name, value in memory.items()},
    }
    print(json.dumps(results, indent=2))
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
