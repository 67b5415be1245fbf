"""``resnetkit doctor``.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from resnetkit.commands.output import results, say, then
from resnetkit.errors import MachineError, ResnetkitError, VerificationError
from resnetkit.formatting import aligned, printable
from resnetkit.runtime.environment import Trial, decodable, environment, extras, try_out


@dataclass(frozen=True)
class Options:
    """Versions, processor, devices, extras and folders, in a form to paste into a report of a fault.

    Examples: resnetkit doctor; resnetkit doctor --device auto; resnetkit doctor --json
    """

    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Try this device out as well: cpu, cuda, cuda:1 or auto."""
    json: bool = False
    """One JSON document instead of lines."""


def run(options: Options) -> int:
    found = environment() | _here()
    if options.device and "fault" not in found:
        found["trial"] = _trial(options.device)
    if options.json:
        results("doctor", **found)
    else:
        print(aligned([(name, printable(told)) for name, told in _lines(found)], left=2))
    fault = _fault(found)
    if fault:
        say(str(fault))
        return fault.exit_code
    if not options.json:
        then(*_next(options.device))
    return 0


def _here() -> dict[str, Any]:
    """What is no part of the record of a run: extras, formats, and a path, which is private."""
    from resnetkit.files import cache_folder
    from resnetkit.images.decode import FORMATS

    lacking = extras()
    return {
        "extras": {name: {"missing": lacks, "install": _install(name)} for name, lacks in lacking.items()},
        "pictures": decodable(FORMATS),
        "cache": str(cache_folder()),
    }


def _install(extra: str) -> str:
    return f"pip install 'resnetkit[{extra}]'"


def _trial(name: str) -> dict[str, Any]:
    from resnetkit.runtime.device import pick

    device = pick(name)
    try:
        return {"device": str(device), "products": [asdict(trial) for trial in try_out(device)]}
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise MachineError(
            f"{device} is there and does not compute: {reason}", fix="check its driver, and what else runs on it"
        ) from error


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory = found["gpu_memory"]
    for name in ("python", "system", "machine", "processor", "cores", "threads"):
        yield name, str(found[name] or "unknown")
    yield "features", ", ".join(found["features"]) or "none"
    gpus = [f"cuda:{i} {name}, {memory[i] / 2**30:.1f} GiB" for i, name in enumerate(found["gpus"])]
    yield from [("gpu", gpu) for gpu in gpus or ["none"]]
    yield from found["packages"].items()
    for name, extra in found["extras"].items():
        lacks = ", ".join(extra["missing"])
        yield f"extra {name}", f"lacks {lacks}: {extra['install']}" if lacks else "present"
    yield "pictures", ", ".join(found["pictures"])
    yield "cache", found["cache"]
    if "trial" in found:
        for product in found["trial"]["products"]:
            yield found["trial"]["device"], _told(Trial(**product))


def _told(trial: Trial) -> str:
    verdict = "right" if trial.right else "WRONG"
    return f"a product of 256x256 matrices in {trial.precision} is {verdict}, {trial.milliseconds:.2f} ms"


def _fault(found: dict[str, Any]) -> ResnetkitError | None:
    if "fault" in found:
        return MachineError(f"torch cannot be imported: {found['fault']}", fix="install torch anew")
    trial = found.get("trial", {"products": []})
    wrong = [product["precision"] for product in trial["products"] if not product["right"]]
    if wrong:
        return VerificationError(f"{trial['device']} multiplies wrongly in {' and '.join(wrong)}")
    return None


def _next(device: str) -> tuple[str, ...]:
    if device:
        return ("resnetkit train digits --model resnet20 --device", device)
    return ("resnetkit doctor --device auto",)
