"""Record the output of commands that need weights or train: python benchmarks/transcripts.py WEIGHTS

WEIGHTS is akamaster's resnet56-4bfd9763.th. Commands run in an empty folder. docs/make.py puts their output into the
pages, and tests compare it with that of the code, except for rounding errors.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "modify.txt": "resnetkit modify resnet56-4bfd9763.th backbone --input-channels 1 --dilate 2 --features 2,3",
    "segmentation.txt": "python examples/segmentation.py",
}


def run_command(command: str, folder: Path) -> str:
    tool, *words = shlex.split(command)
    run = ["-m", "resnetkit", *words] if tool == "resnetkit" else [ROOT / words[0], *words[1:]]
    return subprocess.run([sys.executable, *run], cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    weights = parser.parse_args().weights.resolve()
    for name, command in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / weights.name).symlink_to(weights)
            text = f"$ {command}\n{run_command(command, Path(folder)).rstrip()}\n"
        (ROOT / "docs" / "measured" / name).write_text(text)
        print(text)


if __name__ == "__main__":
    main()
