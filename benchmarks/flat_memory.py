"""Check that the memory of `resnetkit predict` does not grow with the number of images: 20,000 small ones.

    python benchmarks/flat_memory.py MODEL [--images 20000] [--out csv|jsonl|parquet] [--save FILE.json] [-- OPTIONS]

The images are drawn in a temporary folder, all different. The script reads the memory of the process (VmRSS) after
every 1,000 rows of its output, and the peak at the end. OPTIONS, such as --engine torch, are passed to the command.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

EVERY = 1000


def write_images(folder, count):
    """Write small JPEGs, a thousand in a folder."""
    draw = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i // 1000:03}" / f"{i:06}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((64, 48)).save(path)


def read_memory(process):
    """Read VmRSS and VmHWM of a process in MiB; nothing if it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM") if name in fields}


def find_output(out):
    """Find the output as it is now: the .part file, the hidden file of Parquet, or the final file."""
    candidates = [out.with_name(f"{out.name}.part"), *out.parent.glob(f".{out.name}.*.part"), out]
    return next((path for path in candidates if path.exists()), None)


def sample_memory(process, out, text):
    """Return (rows, MiB) after every 1,000 rows, and the peak.

    The rows of Parquet cannot be counted, so its samples are (seconds, MiB), one for each second.

    Args:
        process: The running command.
        out: Its output file.
        text: Whether the output is text, whose lines can be counted.
    """
    samples, peak, rows, read, began = [], 0.0, 0, 0, time.monotonic()
    while process.poll() is None:
        now, path = read_memory(process), find_output(out)
        peak = max(peak, now.get("VmHWM", 0.0))
        if text and path:
            try:
                with path.open("rb") as file:
                    file.seek(read)
                    content = file.read()
            except OSError:  # the file has just been renamed to its final name
                content = b""
            rows, read = rows + content.count(b"\n"), read + len(content)
        mark = rows // EVERY * EVERY if text else int(time.monotonic() - began)
        if "VmRSS" in now and (not samples or mark > samples[-1][0]):
            samples.append((mark, now["VmRSS"]))
        time.sleep(0.02)
    return samples, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--out", choices=("csv", "jsonl", "parquet"), default="csv")
    parser.add_argument("--save", type=Path)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command_options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place) / "in", options.images)
        out = Path(place) / f"labels.{options.out}"
        words = ["predict", Path(place) / "in", "--model", options.model, "--out", out, *command_options]
        process = subprocess.Popen([sys.executable, "-m", "resnetkit", *map(str, words)], text=True, stderr=-1)
        samples, peak = sample_memory(process, out, options.out != "parquet")
        lines = process.communicate()[1].splitlines()
    print(lines[0])
    print("rows" if options.out != "parquet" else "seconds", "MiB", sep="\t")
    for mark, size in samples:
        print(mark, f"{size:.0f}", sep="\t")
    print(f"peak: {peak:.0f} MiB; exit code {process.returncode}")
    if options.save:
        results = {"engine": lines[0], "images": options.images, "out": options.out, "peak": peak, "held": samples}
        options.save.write_text(json.dumps(results, indent=2) + "\n")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
