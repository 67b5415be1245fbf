"""Check that a run that is killed at random times and resumed ends with the weights of an undisturbed run.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--save FILE.json]

A small network is trained on the digits, once undisturbed and once with kill -9 at random times over the whole run.
Each kill is followed by `resnetkit train --resume`. If a run ends before all kills are used, another one starts. The
weights must be equal, byte for byte, and so must every line of metrics.jsonl except its times.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resnetkit.errors import ResnetkitError
from resnetkit.training.checkpoint import load_latest_checkpoint
from resnetkit.training.run_folder import METRICS_FILE, is_run_finished

NETWORK = """
input = [1, 8, 8]
stages = [
    { blocks = 1, channels = 8, branch = { kind = "basic", width = 8 } },
    { blocks = 1, channels = 16, branch = { kind = "basic", width = 16 }, reduce = "first-block" },
]
stochastic_depth = 0.3
[stem]
convs = [{ channels = 8, kernel = 3 }]
pool = []
[head]
kind = "linear"
classes = 10
"""
TRAIN_OPTIONS = ["--epochs", "6", "--precision", "fp32", "--checkpoint-steps", "11"]


def build_command(*args):
    """Build a `resnetkit train` command."""
    return [sys.executable, "-m", "resnetkit", "train", *map(str, args)]


def hash_weights(run):
    """Return the SHA-256 of the weights of a run."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def read_metrics(run):
    """Read the lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def describe_kill(run):
    """Describe the point at which a run was killed."""
    if not (run / "run.toml").exists():
        return "before it began"
    try:
        checkpoint = load_latest_checkpoint(run / "state", lambda checkpoint: None)
    except ResnetkitError as error:
        return f"WITHOUT A LOADABLE CHECKPOINT: {error.what}"
    logged = len([line for line in read_complete_lines(run) if line.get("kind") == "step"])
    return (
        f"checkpoint of step {checkpoint.state.global_step}, {logged} logged"
        if checkpoint
        else "before the first checkpoint"
    )


def read_complete_lines(run):
    """Read the complete lines of a log that may end within a line."""
    for line in (run / METRICS_FILE).read_text().splitlines() if (run / METRICS_FILE).exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rng, records, equal = random.Random(options.seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "net.toml").write_text(NETWORK)
        train_args = ["digits", "--model", root / "net.toml", *TRAIN_OPTIONS, "--out"]
        started = time.perf_counter()
        subprocess.run(build_command(*train_args, root / "whole"), check=True, capture_output=True)
        duration, number = time.perf_counter() - started, 0
        while len(records) < options.kills:
            number += 1
            run = root / f"run{number}"
            for kill in range(3):
                args = ["--resume", run] if (run / "run.toml").exists() else [*train_args, run]
                process = subprocess.Popen(build_command(*args), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                time.sleep(rng.uniform(0.4, 1.0) * duration if kill == 0 else rng.uniform(0.4, 0.8) * duration)
                if process.poll() is None:
                    process.kill()
                process.wait()
                if is_run_finished(run):
                    break
                if process.returncode == -9:
                    records.append(describe_kill(run))
                    print(f"kill {len(records):3}  {run.name}  {records[-1]}", flush=True)
            args = ["--resume", run] if (run / "run.toml").exists() else [*train_args, run]
            subprocess.run(build_command(*args), check=True, capture_output=True)
            equal.append(
                hash_weights(run) == hash_weights(root / "whole") and read_metrics(run) == read_metrics(root / "whole")
            )
            print(f"          {run.name}  {'equal' if equal[-1] else 'DIFFERENT'}", flush=True)
    print(f"{len(records)} kills in {len(equal)} runs; {sum(equal)} of them equal to the undisturbed one")
    if options.save:
        results = {"kills": len(records), "runs": len(equal), "equal": sum(equal), "where": records}
        options.save.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
