"""Two machines on one: network namespaces with names of their own and a cable between them. Needs root and `ip`.

python benchmarks/two_hosts.py FOLDER

Trains with a process on each, and compares the weights with those of two processes on one machine; kills the process
of one machine; pulls the cable; evaluates. Everything stays in FOLDER, and the namespaces are removed at the end.
"""

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
    """Both machines, joined."""
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
    """One of them, with torchrun and one process."""
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
    while when and not when.exists() and all(one.poll() is None for one in running):
        time.sleep(0.05)
    begun = time.perf_counter()
    if act:
        act()
    said = [ending(one) for one in running]
    return [(one.returncode, *told) for one, told in zip(running, said, strict=True)], time.perf_counter() - begun


def ending(one: subprocess.Popen[str]) -> tuple[str, str]:
    """What it says; torchrun itself may wait for ten minutes for a machine that is gone."""
    try:
        return one.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(one.pid, signal.SIGKILL)
        return one.communicate()


def kill_on(host: str) -> None:
    """The process of resnetkit on one machine."""
    inside = subprocess.run(["ip", "netns", "pids", f"rk-{host}"], capture_output=True, text=True, check=True)
    for pid in map(int, inside.stdout.split()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"torch.distributed.run" not in command and b"resnetkit" in command:
            os.kill(pid, signal.SIGKILL)


def sha(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def errors(said) -> list[str]:
    """What the processes themselves said of a failure."""
    lines = [line for _, _, err in said for line in err.splitlines()]
    return [line for line in lines if line.startswith(("error:", "where:", "on:", "ended,"))]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = {"localhost": "127.0.0.1"} | {f"host-{name}": address for name, address in HOSTS.items()}
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in known.items()))
    found = {}
    with cable():
        said, seconds = both(folder, [*TRAIN, "--out", "two"])
        assert [code for code, *_ in said] == [0, 0], said
        found["train: seconds"] = round(seconds, 1)
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
        found["train: the weights of two machines are those of two processes on one"] = sha(folder / "two") == sha(
            folder / "local"
        )
        said, _ = both(folder, ["evaluate", "two", "digits", "--device", "cpu", "--json"])
        counts = json.loads(next(out for _, out, _ in said if out))
        alone = [sys.executable, "-m", "resnetkit", "evaluate", "two", "digits", "--device", "cpu", "--json"]
        one = subprocess.run(alone, capture_output=True, text=True, check=True, cwd=folder)
        found["evaluate: the same document as one process"] = counts == json.loads(one.stdout)
        for name, act in {
            "killed": lambda: kill_on("two"),
            "unplugged": lambda: ip("-n", "rk-two", "link", "set", "rk-two", "down"),
        }.items():
            words = [*TRAIN, "--epochs", "200", "--out", name, "--timeout", "10"]
            said, seconds = both(folder, words, act, folder / name / "state" / "latest")
            found[f"{name}: exit codes, seconds, words"] = (
                [code for code, *_ in said],
                round(seconds, 1),
                errors(said),
            )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
