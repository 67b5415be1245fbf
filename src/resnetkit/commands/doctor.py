"""``resnetkit doctor``.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import log, print_json, suggest_next
from resnetkit.errors import MachineError, ResnetkitError, VerificationError, format_install_command
from resnetkit.formatting import align_table, escape_control
from resnetkit.runtime import environment


@dataclass(frozen=True)
class Options:
    """Describe versions, processor, devices, extras and folders, in a form to paste into a bug report.

    Examples: resnetkit doctor; resnetkit doctor --device auto; resnetkit doctor --json
    """

    device: Annotated[str, Argument("NAME")] = ""
    """Also check that this device computes correctly: cpu, cuda, cuda:1 or auto."""
    json: bool = False
    """Print one JSON document instead of lines."""


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    info = environment.collect_environment() | _collect_install_info()
    if options.device and "error" not in info:
        info["device_check"] = _check_device(options.device)
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
    """Return what a run does not record: extras, image formats, and the cache folder, which is private."""
    from resnetkit.files import get_cache_folder
    from resnetkit.images.decode import FORMATS

    missing = environment.list_extras()
    extras = {name: {"missing": missing[name], "install": format_install_command(name)} for name in missing}
    return {
        "extras": extras,
        "image_formats": environment.select_decodable_formats(FORMATS),
        "cache": str(get_cache_folder()),
    }


def _check_device(name: str) -> dict[str, Any]:
    from resnetkit.runtime.device import select_device

    device = select_device(name)
    try:
        return {"device": str(device), "matmuls": [asdict(check) for check in environment.run_matmul_checks(device)]}
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        fix = "check its driver, and other programs that use it"
        raise MachineError(f"{device} exists but does not compute: {reason}", fix=fix) from error


def _format_lines(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("python", "system", "machine", "processor", "cores", "threads"):
        yield name, str(info[name] or "unknown")
    yield "features", ", ".join(info["features"]) or "none"
    gpu_rows = enumerate(zip(info["gpus"], info["gpu_memory"], strict=True))
    gpus = [f"cuda:{i} {name}, {memory / 2**30:.1f} GiB" for i, (name, memory) in gpu_rows]
    yield from [("gpu", gpu) for gpu in gpus or ["none"]]
    yield from info["packages"].items()
    for name, extra in info["extras"].items():
        missing = ", ".join(extra["missing"])
        yield f"extra {name}", f"lacks {missing}: {extra['install']}" if missing else "installed"
    yield "image formats", ", ".join(info["image_formats"])
    yield "cache", info["cache"]
    for matmul in _list_matmuls(info):
        yield info["device_check"]["device"], _format_matmul(environment.MatmulCheck(**matmul))


def _list_matmuls(info: dict[str, Any]) -> list[dict[str, Any]]:
    matmuls: list[dict[str, Any]] = info.get("device_check", {}).get("matmuls", [])
    return matmuls


def _format_matmul(matmul: environment.MatmulCheck) -> str:
    verdict = "correct" if matmul.correct else "WRONG"
    return f"256x256 matrix multiplication in {matmul.precision} is {verdict}, {matmul.milliseconds:.2f} ms"


def _find_error(info: dict[str, Any]) -> ResnetkitError | None:
    if "error" in info:
        return MachineError(f"torch cannot be imported: {info['error']}", fix="reinstall torch")
    wrong_precisions = [matmul["precision"] for matmul in _list_matmuls(info) if not matmul["correct"]]
    if wrong_precisions:
        device = info["device_check"]["device"]
        return VerificationError(f"{device} multiplies matrices wrongly in {' and '.join(wrong_precisions)}")
    return None


def _choose_next_command(device: str) -> tuple[str, ...]:
    if device:
        return ("resnetkit train digits --model resnet20 --device", device)
    return ("resnetkit doctor --device auto",)
