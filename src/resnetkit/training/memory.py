"""How much memory a run will need, from its plan, beside what there is; and what to do after there was too little."""

from __future__ import annotations

import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from resnetkit.architecture.operations import NormOp
from resnetkit.architecture.plan import Plan
from resnetkit.data.loader import EVAL_BATCH_SIZE
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.network.inference import PixelNormalizer
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.distributed import read_launch_info
from resnetkit.training.recipe import EMA, AdamW, Recipe
from resnetkit.training.run_folder import RunSetup, format_resume_command
from resnetkit.training.sync_batch_norm import disable_sync

_LIBRARY_BYTES = 100e6  # what torch's own kernels take once


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes: whatever the batch, for each picture of a batch, and for an evaluation."""

    fixed: float
    per_image: float
    evaluation: float

    def compute_peak(self, batch_size: int) -> float:
        """At the peak of a run."""
        return self.fixed + max(self.per_image * batch_size, self.evaluation)

    def find_largest_batch(self, available_bytes: float) -> int:
        """The largest batch that a power of two counts and that stays below so many; 0 where none does."""
        sizes = (2**i for i in range(16, 0, -1))
        return next((size for size in sizes if self.compute_peak(size) <= available_bytes), 0)


def estimate_memory(
    plan: Plan, recipe: Recipe, precision: str, eval_batch_size: int = EVAL_BATCH_SIZE
) -> MemoryEstimate:
    """Of a training step.

    What backward needs stays: the outputs of everything but norms and additions. Beside it the gradients of the
    largest of them, twice. Weights come with gradients, moments, an average, the best so far, and a copy of all but
    the gradients while a checkpoint is written.
    """
    bytes_per_value = 2 if precision == "bf16" else 4
    sizes = [node.activations for node in plan.nodes]
    saved_activations = sum(n.activations for n in plan.nodes if not isinstance(n.op, NormOp) and n.role != "add")
    n_moments = 2 if isinstance(recipe.optimizer, AdamW) else int(recipe.optimizer.momentum > 0)
    n_copies = 2 + n_moments + isinstance(recipe.ema, EMA)
    weight_bytes = 4 * plan.params * (2 * n_copies + 1) + (2 * plan.params if precision == "bf16" else 0)
    image_bytes = math.prod(plan.input) * 4
    return MemoryEstimate(
        weight_bytes + _LIBRARY_BYTES,
        bytes_per_value * (saved_activations + 2 * max(sizes)) + image_bytes,
        min(EVAL_BATCH_SIZE, eval_batch_size) * (8 * max(sizes) + image_bytes),
    )


def get_available_memory(device: torch.device) -> float:
    """Bytes that are free for this process: of its GPU, or its share of what its machine and its control group have."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    launch = read_launch_info()
    return min(_get_ulimit_memory(), min(_iter_free_memory()) / (launch.local_world_size if launch else 1))


def _iter_free_memory() -> Iterator[float]:
    yield math.inf
    for line in _read_or_empty(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    cgroup = Path("/sys/fs/cgroup")
    limit, used = _read_or_empty(cgroup / "memory.max").strip(), _read_or_empty(cgroup / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        yield int(limit) - int(used)


def _get_ulimit_memory() -> float:
    """What ``ulimit -v`` leaves to this process."""
    pages = _read_or_empty(Path("/proc/self/statm")).split()
    if not pages:
        return math.inf
    import resource  # where there is /proc there is this

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit - int(pages[0]) * resource.getpagesize() if limit != resource.RLIM_INFINITY else math.inf


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def format_memory_line(setup: RunSetup) -> str:
    """One line with both, once the pictures are in memory that are kept there; warns where the need is more."""
    recipe, device = setup.recipe, torch.device(setup.device)
    eval_batch_size = max(len(images) for split, images in setup.dataset.splits.items() if split != "train")
    estimate, free_bytes = (
        estimate_memory(setup.plan, recipe, setup.precision, eval_batch_size),
        get_available_memory(device),
    )
    total_bytes = estimate.compute_peak(get_micro_batch_size(setup))
    if total_bytes > free_bytes:
        batch_size = estimate.find_largest_batch(free_bytes) * _count_micro_batches(setup)
        warnings.warn(_format_warning(recipe, batch_size, total_bytes, free_bytes), ResnetkitWarning, stacklevel=2)
    return (
        f"about {_format_bytes(total_bytes)} for batches of {recipe.batch_size}"
        + f"; {_format_bytes(free_bytes)} are free" * (free_bytes < math.inf)
    )


def _format_warning(recipe: Recipe, batch_size: int, total_bytes: float, free_bytes: float) -> str:
    suggestion = (
        f"--batch-size {batch_size} would fit"
        if batch_size
        else "no batch would fit: smaller pictures, or a smaller network"
    )
    return f"batches of {recipe.batch_size} need about {_format_bytes(total_bytes)} of memory, and {_format_bytes(free_bytes)} are free; {suggestion}"


def _format_bytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


# ------------------------------------------------------------------------------------------- when there was too little


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was what was missing; torch says it on a CPU in words alone."""
    message = str(error) if isinstance(error, RuntimeError) else ""
    is_reported = "can't allocate memory" in message or "out of memory" in message
    return is_reported or isinstance(error, MemoryError | torch.OutOfMemoryError)


def get_peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at most."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def build_out_of_memory_error(
    error: BaseException, setup: RunSetup, model: NetworkModule, can_resume: bool
) -> MachineError:
    """The error, with a size of batches that was tried out. The model is of no use afterwards."""
    traceback.clear_frames(error.__traceback__)  # they hold what the step had made
    device = torch.device(setup.device)
    peak_bytes, batch_size = get_peak_memory(device), get_micro_batch_size(setup)
    disable_sync(model)
    working_size = find_largest_working_batch(batch_size, lambda n_images: _try_step(setup, model, n_images))
    batches = f"batches of {batch_size}" + " in each process" * (setup.world_size > 1)
    what = f"there is not enough memory for {batches}; the peak was {_format_bytes(peak_bytes)}"
    if working_size == batch_size:
        what = f"there was not enough memory, though there is for {batches}; the peak was {_format_bytes(peak_bytes)}"
    option = f" --batch-size {working_size * _count_micro_batches(setup)}" if 0 < working_size < batch_size else ""
    command = (
        f"{format_resume_command(setup.out)}{option}{' --override' * bool(option)}" if can_resume else option.strip()
    )
    command += f" in {setup.world_size} processes" * (setup.world_size > 1 and bool(command))
    fix = f"{command}, which works" if option else f"free some, or smaller pictures{f'; then {command}' * can_resume}"
    return MachineError(
        what, where=f"{setup.card.name} on {device}", fix=fix + _format_accumulate_hint(setup, working_size)
    )


def get_micro_batch_size(setup: RunSetup) -> int:
    """How many pictures of a step go through the network of one process together."""
    return -(-setup.recipe.batch_size // _count_micro_batches(setup))


def _count_micro_batches(setup: RunSetup) -> int:
    """In how many parts a step goes through networks: processes, and what each takes one after the other."""
    return setup.world_size * setup.recipe.accumulate


def _format_accumulate_hint(setup: RunSetup, working_size: int) -> str:
    """How the steps would keep their size."""
    if not 0 < working_size < get_micro_batch_size(setup):
        return ""
    accumulate = -(-setup.recipe.batch_size // (setup.world_size * working_size))
    return f"; --accumulate {accumulate} instead keeps the size of a step, and norms see its parts one by one"


def find_largest_working_batch(batch_size: int, attempt: Callable[[int], None]) -> int:
    """The first of ``size``, its half, its quarter ... with which an attempt succeeds; 0 where none does."""
    while batch_size >= 2:
        try:
            attempt(batch_size)
            return batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        batch_size //= 2
    return 0


def _try_step(setup: RunSetup, model: NetworkModule, batch_size: int) -> None:
    """A step of learning, but for the change of the weights."""
    device, preparation = torch.device(setup.device), setup.card.preparation
    model.zero_grad(set_to_none=True)
    pixels = torch.zeros(batch_size, *preparation.crop, len(preparation.mean), dtype=torch.uint8)
    with torch.autocast(device.type, torch.bfloat16, enabled=setup.precision == "bf16"):
        outputs = model.train()(PixelNormalizer(preparation, device)(pixels))
    loss = F.cross_entropy(outputs.float(), outputs.new_zeros(batch_size, dtype=torch.long))
    loss.backward()  # type: ignore[no-untyped-call]
