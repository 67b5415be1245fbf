"""Estimate the memory of a run before its first step, and advise after an out-of-memory error."""

from __future__ import annotations

import math
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from resnetkit.architecture.operations import NormOp
from resnetkit.architecture.plan import Plan
from resnetkit.data.loader import EVAL_BATCH_SIZE
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.network.inference import PixelNormalizer
from resnetkit.runtime.free_memory import get_free_memory
from resnetkit.training.events import PreparedRun
from resnetkit.training.recipe import Recipe
from resnetkit.training.run_folder import format_resume_command
from resnetkit.training.sync_batch_norm import disable_sync

_LIBRARY_BYTES = 100e6  # torch's kernels


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated bytes: independent of the batch, for each image of a batch, and for a validation."""

    fixed: float
    per_image: float
    evaluation: float

    def compute_peak(self, batch_size: int) -> float:
        """Compute the bytes at the peak of a run."""
        return self.fixed + max(self.per_image * batch_size, self.evaluation)

    def find_largest_batch(self, available_bytes: float) -> int:
        """Find the largest power of two as a batch size that fits; 0 if none does."""
        sizes = (2**i for i in range(16, 0, -1))
        return next((size for size in sizes if self.compute_peak(size) <= available_bytes), 0)


def estimate_memory(
    plan: Plan, recipe: Recipe, precision: str, eval_batch_size: int = EVAL_BATCH_SIZE
) -> MemoryEstimate:
    """Estimate the memory of a training step.

    Autograd keeps the outputs of all layers but norms and additions; twice the largest one is added for gradients.
    Weights come with gradients, moments, an average, the best epoch so far, and a copy of all but the gradients while a
    checkpoint is written.

    Args:
        plan: The plan of the network.
        recipe: The recipe.
        precision: ``fp32`` or ``bf16``.
        eval_batch_size: The images of the largest validation batch.
    """
    bytes_per_value = 2 if precision == "bf16" else 4
    largest = max(node.activations for node in plan.nodes)
    saved_activations = sum(n.activations for n in plan.nodes if not isinstance(n.op, NormOp) and n.role != "add")
    bytes_per_param = 4 * (2 * recipe.count_weight_copies() + 1)
    image_bytes = math.prod(plan.input) * 4
    return MemoryEstimate(
        plan.params * (bytes_per_param + 2 * (precision == "bf16")) + _LIBRARY_BYTES,
        bytes_per_value * (saved_activations + 2 * largest) + image_bytes,
        min(EVAL_BATCH_SIZE, eval_batch_size) * (8 * largest + image_bytes),
    )


def get_available_memory(device: torch.device, root: Path = Path("/")) -> float:
    """Return the free bytes: of the GPU, or this process's share of its machine and control group.

    Args:
        device: The device that trains.
        root: The root of the file system with ``proc`` and ``sys``.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return get_free_memory(root)


def format_memory_line(run: PreparedRun) -> str:
    """Format the estimated and the free memory, after the images are loaded; warn if the run needs more."""
    recipe = run.recipe
    eval_batch_size = max(len(images) for split, images in run.dataset.splits.items() if split != "train")
    estimate = estimate_memory(run.plan, recipe, run.precision, eval_batch_size)
    peak, free_bytes = estimate.compute_peak(get_micro_batch_size(run)), get_available_memory(torch.device(run.device))
    if peak > free_bytes:
        batch_size = estimate.find_largest_batch(free_bytes) * _count_micro_batches(run)
        fix = f"--batch-size {batch_size} would fit" if batch_size else "use smaller images or a smaller network"
        need = f"batches of {recipe.batch_size} need about {_format_bytes(peak)} of memory"
        warnings.warn(f"{need}, but {_format_bytes(free_bytes)} are free; {fix}", ResnetkitWarning, stacklevel=2)
    line = f"about {_format_bytes(peak)} for batches of {recipe.batch_size}"
    return f"{line}; {_format_bytes(free_bytes)} are free" if free_bytes < math.inf else line


def _format_bytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


# ------------------------------------------------------------------------------------------------------- out of memory


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; on a CPU torch only says so in its message."""
    message = str(error) if isinstance(error, RuntimeError) else ""
    is_reported = "can't allocate memory" in message or "out of memory" in message
    return is_reported or isinstance(error, MemoryError | torch.OutOfMemoryError)


def get_peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has used."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def build_out_of_memory_error(error: BaseException, run: PreparedRun, can_resume: bool) -> MachineError:
    """Build the error that suggests a batch size which works; the network cannot be used afterwards.

    Args:
        error: The error of the step that failed.
        run: The run.
        can_resume: Whether the run folder holds a checkpoint.
    """
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step
    device, batch_size = torch.device(run.device), get_micro_batch_size(run)
    peak = f"the peak was {_format_bytes(get_peak_memory(device))}"
    disable_sync(run.model)
    working_size = find_largest_working_batch(batch_size, lambda n_images: try_step(run, n_images))
    batches = f"batches of {batch_size}" + (" in each process" if run.world_size > 1 else "")
    what = f"not enough memory for {batches}; {peak}"
    if working_size == batch_size:
        what = f"memory ran out, although {batches} fit now; {peak}"
    return MachineError(what, where=f"{run.card.name} on {device}", fix=_advise(run, working_size, can_resume))


def _advise(run: PreparedRun, working_size: int, can_resume: bool) -> str:
    """Advise a batch size that works and, to keep the size of a step, a number of micro-batches."""
    processes = f" in {run.world_size} processes" if run.world_size > 1 else ""
    if not 0 < working_size < get_micro_batch_size(run):
        resume = f"; then {format_resume_command(run.out)}{processes}" if can_resume else ""
        return f"free some memory, or use smaller images{resume}"
    option = f"--batch-size {working_size * _count_micro_batches(run)}"
    command = f"{format_resume_command(run.out)} {option} --override" if can_resume else option
    accumulate = -(-run.recipe.batch_size // (run.world_size * working_size))
    hint = f"or --accumulate {accumulate}, which keeps the batch size but normalizes each micro-batch by itself"
    return f"{command}{processes}, which works; {hint}"


def get_micro_batch_size(run: PreparedRun) -> int:
    """Return how many images of a step go through the network of one process at once."""
    return -(-run.recipe.batch_size // _count_micro_batches(run))


def _count_micro_batches(run: PreparedRun) -> int:
    return run.world_size * run.recipe.accumulate


def find_largest_working_batch(batch_size: int, attempt: Callable[[int], None]) -> int:
    """Return the first of a batch size, its half, its quarter ... that fits; 0 if none does.

    Args:
        batch_size: The largest batch size to try.
        attempt: A function that fails if a batch size does not fit.
    """
    while batch_size >= 2:
        try:
            attempt(batch_size)
            return batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        batch_size //= 2
    return 0


def try_step(run: PreparedRun, batch_size: int) -> None:
    """Compute a training step without changing the weights.

    Args:
        run: The run.
        batch_size: The number of images.
    """
    device, preparation = torch.device(run.device), run.card.preparation
    run.model.zero_grad(set_to_none=True)
    pixels = torch.zeros(batch_size, *preparation.crop, len(preparation.mean), dtype=torch.uint8)
    with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        outputs = run.model.train()(PixelNormalizer(preparation, device)(pixels))
    loss = F.cross_entropy(outputs.float(), outputs.new_zeros(batch_size, dtype=torch.long))
    loss.backward()  # type: ignore[no-untyped-call]
