"""``resnetkit doctor``.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from resnetkit.commands.output import log, print_json, suggest_next
from resnetkit.errors import MachineError, ResnetkitError, VerificationError
from resnetkit.formatting import align_table, escape_control
from resnetkit.runtime.environment import (
    MatmulCheck,
    collect_environment,
    list_extras,
    run_matmul_checks,
    select_decodable_formats,
)


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
    info = collect_environment() | _collect_install_info()
    if options.device and "error" not in info:
        info["trial"] = _try_device(options.device)
    if options.json:
        print_json("doctor", **info)
    else:
        print(align_table([(name, escape_control(value)) for name, value in _format_lines(info)], n_text_columns=2))
    error = _find_error(info)
    if error:
        log(str(error))
        return error.exit_code
    if not options.json:
        suggest_next(*_choose_next_command(options.device))
    return 0


def _collect_install_info() -> dict[str, Any]:
    """What is no part of the record of a run: extras, formats, and a path, which is private."""
    from resnetkit.files import get_cache_folder
    from resnetkit.images.decode import FORMATS

    missing = list_extras()
    return {
        "extras": {
            name: {"missing": packages, "install": _format_install_command(name)} for name, packages in missing.items()
        },
        "pictures": select_decodable_formats(FORMATS),
        "cache": str(get_cache_folder()),
    }


def _format_install_command(extra: str) -> str:
    return f"pip install 'resnetkit[{extra}]'"


def _try_device(name: str) -> dict[str, Any]:
    from resnetkit.runtime.device import select_device

    device = select_device(name)
    try:
        return {"device": str(device), "products": [asdict(trial) for trial in run_matmul_checks(device)]}
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise MachineError(
            f"{device} is there and does not compute: {reason}", fix="check its driver, and what else runs on it"
        ) from error


def _format_lines(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory = info["gpu_memory"]
    for name in ("python", "system", "machine", "processor", "cores", "threads"):
        yield name, str(info[name] or "unknown")
    yield "features", ", ".join(info["features"]) or "none"
    gpus = [f"cuda:{i} {name}, {memory[i] / 2**30:.1f} GiB" for i, name in enumerate(info["gpus"])]
    yield from [("gpu", gpu) for gpu in gpus or ["none"]]
    yield from info["packages"].items()
    for name, extra in info["extras"].items():
        missing = ", ".join(extra["missing"])
        yield f"extra {name}", f"lacks {missing}: {extra['install']}" if missing else "present"
    yield "pictures", ", ".join(info["pictures"])
    yield "cache", info["cache"]
    if "trial" in info:
        for product in info["trial"]["products"]:
            yield info["trial"]["device"], _format_trial(MatmulCheck(**product))


def _format_trial(trial: MatmulCheck) -> str:
    verdict = "right" if trial.correct else "WRONG"
    return f"a product of 256x256 matrices in {trial.precision} is {verdict}, {trial.milliseconds:.2f} ms"


def _find_error(info: dict[str, Any]) -> ResnetkitError | None:
    if "error" in info:
        return MachineError(f"torch cannot be imported: {info['error']}", fix="install torch anew")
    trial = info.get("trial", {"products": []})
    wrong_precisions = [product["precision"] for product in trial["products"] if not product["correct"]]
    if wrong_precisions:
        return VerificationError(f"{trial['device']} multiplies wrongly in {' and '.join(wrong_precisions)}")
    return None


def _choose_next_command(device: str) -> tuple[str, ...]:
    if device:
        return ("resnetkit train digits --model resnet20 --device", device)
    return ("resnetkit doctor --device auto",)
