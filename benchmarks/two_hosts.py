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


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def cable():
    """Create both namespaces and the cable; remove them at the end."""
    try:
        for name in HOSTS:
            ip("netns", "add", f"rk-{name}")
            ip("-n", f"rk-{name}", "link", "set", "lo", "up")
        ip("link", "add", "rk-one", "netns", "rk-one", "type", "veth", "peer", "name", "rk-two", "netns", "rk-two")
        for name, address in HOSTS.items():
            ip("-n", f"rk-{name}", "address", "add", f"{address}/24", "dev", f"rk-{name}")
            ip("-n", f"rk-{name}", "link", "set", f"rk-{name}", "up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", f"rk-{name}"], check=False)


def started(folder: Path, number: int, verb: list[str]) -> subprocess.Popen[str]:
    """Start torchrun with one process on a machine."""
    name, address = list(HOSTS.items())[number]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['one']}:29400", "--rdzv-id", "two-hosts",
                "--local-addr", address, "-m", "resnetkit", *verb]  # fmt: skip
    enter = f'mount --bind hosts /etc/hosts; hostname host-{name}; exec "$@"'  # torchrun asks who the name is
    named = ["taskset", "--cpu-list", str(number), "unshare", "--uts", "--mount", "sh", "-c", enter, "sh", *torchrun]
    around = os.environ | {"GLOO_SOCKET_IFNAME": f"rk-{name}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", f"rk-{name}", *named], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=around, cwd=folder, start_new_session=True,
    )  # fmt: skip


def both(folder: Path, verb: list[str], act=None, when: Path | None = None):
    """[(exit code of torchrun, stdout, stderr)] of each, and the seconds from ``act`` until both had ended."""
    running = [started(folder, number, verb) for number in range(2)]
    while when and not when.exists() and all(process.poll() is None for process in running):
        time.sleep(0.05)
    begun = time.perf_counter()
    if act:
        act()
    outputs = [ending(process) for process in running]
    results = [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]
    return results, time.perf_counter() - begun


def ending(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return its outputs; torchrun may wait ten minutes for a lost machine, so kill it after one."""
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def kill_on(host: str) -> None:
    """Kill the process of resnetkit on a machine."""
    inside = subprocess.run(["ip", "netns", "pids", f"rk-{host}"], capture_output=True, text=True, check=True)
    for pid in map(int, inside.stdout.split()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"torch.distributed.run" not in command and b"resnetkit" in command:
            os.kill(pid, signal.SIGKILL)


def sha(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def errors(outputs) -> list[str]:
    """Return the lines about a failure that the processes printed."""
    lines = [line for _, _, err in outputs for line in err.splitlines()]
    return [line for line in lines if line.startswith(("error:", "where:", "on:", "stopped:"))]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = {"localhost": "127.0.0.1"} | {f"host-{name}": address for name, address in HOSTS.items()}
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in known.items()))
    results = {}
    with cable():
        outputs, seconds = both(folder, [*TRAIN, "--out", "two"])
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
        results["train: the weights of two machines are those of two processes on one"] = sha(folder / "two") == sha(
            folder / "local"
        )
        outputs, _ = both(folder, ["evaluate", "two", "digits", "--device", "cpu", "--json"])
        counts = json.loads(next(out for _, out, _ in outputs if out))
        alone = [sys.executable, "-m", "resnetkit", "evaluate", "two", "digits", "--device", "cpu", "--json"]
        process = subprocess.run(alone, capture_output=True, text=True, check=True, cwd=folder)
        results["evaluate: the same document as one process"] = counts == json.loads(process.stdout)
        for name, act in {
            "killed": lambda: kill_on("two"),
            "unplugged": lambda: ip("-n", "rk-two", "link", "set", "rk-two", "down"),
        }.items():
            words = [*TRAIN, "--epochs", "200", "--out", name, "--timeout", "10"]
            outputs, seconds = both(folder, words, act, folder / name / "state" / "latest")
            results[f"{name}: exit codes, seconds, words"] = (
                [code for code, *_ in outputs],
                round(seconds, 1),
                errors(outputs),
            )
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder.absolute())
