"""Simulate two machines with network namespaces and a virtual cable between them. Needs root and `ip`.

    python benchmarks/two_hosts.py FOLDER

The script trains with a process on each machine, and compares the weights with those of two processes on one machine.
It kills the process of one machine, pulls the cable, and evaluates. Everything stays in FOLDER; the namespaces are
removed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOSTS = {"one": "10.77.0.1", "two": "10.77.0.2"}
TRAIN = ["train", "digits", "--model", "resnet20", "--epochs", "2", "--precision", "fp32", "--device", "cpu"]


def run_ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True)


@contextlib.contextmanager
def create_hosts():
    """Create both namespaces and the cable; remove them at the end."""
    try:
        for name in HOSTS:
            run_ip("netns", "add", f"rk-{name}")
            run_ip("-n", f"rk-{name}", "link", "set", "lo", "up")
        run_ip("link", "add", "rk-one", "netns", "rk-one", "type", "veth", "peer", "name", "rk-two", "netns", "rk-two")
        for name, address in HOSTS.items():
            run_ip("-n", f"rk-{name}", "address", "add", f"{address}/24", "dev", f"rk-{name}")
            run_ip("-n", f"rk-{name}", "link", "set", f"rk-{name}", "up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", f"rk-{name}"], check=False)


def start_torchrun(folder: Path, number: int, command: list[str]) -> subprocess.Popen[str]:
    """Start torchrun with one process on a machine."""
    name, address = list(HOSTS.items())[number]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['one']}:29400", "--rdzv-id", "two-hosts",
                "--local-addr", address, "-m", "resnetkit", *command]  # fmt: skip
    # torchrun resolves the name of the host
    script = f'mount --bind hosts /etc/hosts; hostname host-{name}; exec "$@"'
    pinned = ["taskset", "--cpu-list", str(number), "unshare", "--uts", "--mount", "sh", "-c", script, "sh", *torchrun]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": f"rk-{name}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", f"rk-{name}", *pinned], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, cwd=folder, start_new_session=True,
    )  # fmt: skip


def run_on_both(folder: Path, command: list[str], disturb=None, when: Path | None = None):
    """Run a command on both hosts.

    Args:
        folder: The working folder.
        command: The command of resnetkit and its arguments.
        disturb: A function to call while they run.
        when: Call it when this file exists.

    Returns:
        (exit code of torchrun, stdout, stderr) of each host, and the seconds from ``disturb`` until both had ended.
    """
    running = [start_torchrun(folder, number, command) for number in range(2)]
    while when and not when.exists() and all(process.poll() is None for process in running):
        time.sleep(0.05)
    start = time.perf_counter()
    if disturb:
        disturb()
    outputs = [collect_output(process) for process in running]
    results = [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]
    return results, time.perf_counter() - start


def collect_output(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return stdout and stderr; kill torchrun after a minute, as it may wait ten for a lost machine."""
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def kill_process(host: str) -> None:
    """Kill the process of resnetkit on a machine."""
    inside = subprocess.run(["ip", "netns", "pids", f"rk-{host}"], capture_output=True, text=True, check=True)
    for pid in map(int, inside.stdout.split()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"torch.distributed.run" not in command and b"resnetkit" in command:
            os.kill(pid, signal.SIGKILL)


def hash_weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def list_errors(outputs) -> list[str]:
    """Return the lines about a failure that the processes printed."""
    lines = [line for _, _, err in outputs for line in err.splitlines()]
    return [line for line in lines if line.startswith(("error:", "where:", "on:", "stopped:"))]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = {"localhost": "127.0.0.1"} | {f"host-{name}": address for name, address in HOSTS.items()}
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in known.items()))
    results = {}
    with create_hosts():
        outputs, seconds = run_on_both(folder, [*TRAIN, "--out", "two"])
        assert [code for code, *_ in outputs] == [0, 0], outputs
        results["train: seconds"] = round(seconds, 1)
        local = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "resnetkit",
        ]
        subprocess.run(
            [*local, *TRAIN, "--out", "local"], check=True, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        digests = [hash_weights(folder / name) for name in ("two", "local")]
        results["train: the weights of two machines are those of two processes on one"] = digests[0] == digests[1]
        outputs, _ = run_on_both(folder, ["evaluate", "two", "digits", "--device", "cpu", "--json"])
        counts = json.loads(next(out for _, out, _ in outputs if out))
        alone = [sys.executable, "-m", "resnetkit", "evaluate", "two", "digits", "--device", "cpu", "--json"]
        process = subprocess.run(alone, capture_output=True, text=True, check=True, cwd=folder)
        results["evaluate: the same document as one process"] = counts == json.loads(process.stdout)
        for name, disturb in {
            "killed": lambda: kill_process("two"),
            "unplugged": lambda: run_ip("-n", "rk-two", "link", "set", "rk-two", "down"),
        }.items():
            command = [*TRAIN, "--epochs", "200", "--out", name, "--timeout", "10"]
            outputs, seconds = run_on_both(folder, command, disturb, folder / name / "state" / "latest")
            results[f"{name}: exit codes, seconds, errors"] = (
                [code for code, *_ in outputs],
                round(seconds, 1),
                list_errors(outputs),
            )
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder.absolute())
