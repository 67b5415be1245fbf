"""Run code in a process of its own, and record what it does to the system."""

import subprocess
import sys

AUDIT = """
import os, sys
events = []
def hook(event, arguments):
    is_write = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if is_write or event.startswith(("socket.", "subprocess.", "os.exec", "os.spawn", "os.fork", "os.posix_spawn", "os.system",
                                     "os.mkdir", "os.rename", "os.remove", "shutil.", "urllib.")):
        events.append((event, arguments))
sys.dont_write_bytecode = True
sys.addaudithook(hook)
"""


def run_audited(code, *arguments, folder):
    """Run code that finds its writes, processes and connections in `events`; check that `folder`, its home, stays empty."""
    process = subprocess.run(
        [sys.executable, "-c", AUDIT + code, *arguments], capture_output=True, text=True, check=False, cwd=folder,
        env={"PATH": "", "HOME": str(folder)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert list(folder.iterdir()) == []
    return process.stdout
