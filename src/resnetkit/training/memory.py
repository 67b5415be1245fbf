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

from resnetkit.architecture.operations import Normalisation
from resnetkit.architecture.plan import Plan
from resnetkit.data.loader import EVALUATED
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.network.layers import Network
from resnetkit.runtime.device import ToInput
from resnetkit.runtime.distributed import launched
from resnetkit.training.recipe import EMA, AdamW, Recipe
from resnetkit.training.run_folder import Prepared, resuming
from resnetkit.training.sync_batch_norm import alone

_LIBRARIES = 100e6  # what torch's own kernels take once


@dataclass(frozen=True)
class Need:
    """Bytes: whatever the batch, for each picture of a batch, and for an evaluation."""

    fixed: float
    picture: float
    evaluation: float

    def of(self, batch: int) -> float:
        """At the peak of a run."""
        return self.fixed + max(self.picture * batch, self.evaluation)

    def fits(self, bytes_: float) -> int:
        """The largest batch that a power of two counts and that stays below so many; 0 where none does."""
        sizes = (2**i for i in range(16, 0, -1))
        return next((size for size in sizes if self.of(size) <= bytes_), 0)


def need(plan: Plan, recipe: Recipe, precision: str, evaluated: int = EVALUATED) -> Need:
    """Of a training step.

    What backward needs stays: the outputs of everything but norms and additions. Beside it the gradients of the
    largest of them, twice. Weights come with gradients, moments, an average, the best so far, and a copy of all but
    the gradients while a checkpoint is written.
    """
    width = 2 if precision == "bf16" else 4
    sizes = [node.activations for node in plan.nodes]
    kept = sum(n.activations for n in plan.nodes if not isinstance(n.op, Normalisation) and n.role != "add")
    moments = 2 if isinstance(recipe.optimiser, AdamW) else int(recipe.optimiser.momentum > 0)
    copies = 2 + moments + isinstance(recipe.ema, EMA)
    weights = 4 * plan.params * (2 * copies + 1) + (2 * plan.params if precision == "bf16" else 0)
    image = math.prod(plan.input) * 4
    return Need(
        weights + _LIBRARIES,
        width * (kept + 2 * max(sizes)) + image,
        min(EVALUATED, evaluated) * (8 * max(sizes) + image),
    )


def available(device: torch.device) -> float:
    """Bytes that are free for this process: of its GPU, or its share of what its machine and its control group have."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    launch = launched()
    return min(_own(), min(_free()) / (launch.local_world if launch else 1))


def _free() -> Iterator[float]:
    yield math.inf
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        yield int(limit) - int(used)


def _own() -> float:
    """What ``ulimit -v`` leaves to this process."""
    pages = _text(Path("/proc/self/statm")).split()
    if not pages:
        return math.inf
    import resource  # where there is /proc there is this

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return most - int(pages[0]) * resource.getpagesize() if most != resource.RLIM_INFINITY else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def advice(prepared: Prepared) -> str:
    """One line with both, once the pictures are in memory that are kept there; warns where the need is more."""
    recipe, device = prepared.recipe, torch.device(prepared.device)
    evaluated = max(len(pictures) for part, pictures in prepared.data.parts.items() if part != "train")
    wanted, there = need(prepared.plan, recipe, prepared.precision, evaluated), available(device)
    total = wanted.of(at_once(prepared))
    if total > there:
        fits = wanted.fits(there) * _shares(prepared)
        warnings.warn(_warning(recipe, fits, total, there), ResnetkitWarning, stacklevel=2)
    return f"about {_told(total)} for batches of {recipe.batch_size}" + f"; {_told(there)} are free" * (
        there < math.inf
    )


def _warning(recipe: Recipe, fits: int, total: float, there: float) -> str:
    less = f"--batch-size {fits} would fit" if fits else "no batch would fit: smaller pictures, or a smaller network"
    return f"batches of {recipe.batch_size} need about {_told(total)} of memory, and {_told(there)} are free; {less}"


def _told(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


# ------------------------------------------------------------------------------------------- when there was too little


def is_lack(error: BaseException) -> bool:
    """Whether memory was what was missing; torch says it on a CPU in words alone."""
    words = str(error) if isinstance(error, RuntimeError) else ""
    said = "can't allocate memory" in words or "out of memory" in words
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def peak(device: torch.device) -> int:
    """Bytes that this process has had at most."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def too_little(error: BaseException, prepared: Prepared, model: Network, saved: bool) -> MachineError:
    """The error, with a size of batches that was tried out. The model is of no use afterwards."""
    traceback.clear_frames(error.__traceback__)  # they hold what the step had made
    device = torch.device(prepared.device)
    highest, size = peak(device), at_once(prepared)
    alone(model)
    works = working(size, lambda batch: _attempt(prepared, model, batch))
    batches = f"batches of {size}" + " in each process" * (prepared.processes > 1)
    what = f"there is not enough memory for {batches}; the peak was {_told(highest)}"
    if works == size:
        what = f"there was not enough memory, though there is for {batches}; the peak was {_told(highest)}"
    change = f" --batch-size {works * _shares(prepared)}" if 0 < works < size else ""
    again = f"{resuming(prepared.out)}{change}{' --override' * bool(change)}" if saved else change.strip()
    again += f" in {prepared.processes} processes" * (prepared.processes > 1 and bool(again))
    fix = f"{again}, which works" if change else f"free some, or smaller pictures{f'; then {again}' * saved}"
    return MachineError(what, where=f"{prepared.card.name} on {device}", fix=fix + _in_parts(prepared, works))


def at_once(prepared: Prepared) -> int:
    """How many pictures of a step go through the network of one process together."""
    return -(-prepared.recipe.batch_size // _shares(prepared))


def _shares(prepared: Prepared) -> int:
    """In how many parts a step goes through networks: processes, and what each takes one after the other."""
    return prepared.processes * prepared.recipe.accumulate


def _in_parts(prepared: Prepared, works: int) -> str:
    """How the steps would keep their size."""
    if not 0 < works < at_once(prepared):
        return ""
    parts = -(-prepared.recipe.batch_size // (prepared.processes * works))
    return f"; --accumulate {parts} instead keeps the size of a step, and norms see its parts one by one"


def working(size: int, attempt: Callable[[int], None]) -> int:
    """The first of ``size``, its half, its quarter ... with which an attempt succeeds; 0 where none does."""
    while size >= 2:
        try:
            attempt(size)
            return size
        except Exception as error:
            if not is_lack(error):
                raise
        size //= 2
    return 0


def _attempt(prepared: Prepared, model: Network, batch: int) -> None:
    """A step of learning, but for the change of the weights."""
    device, preparation = torch.device(prepared.device), prepared.card.preparation
    model.zero_grad(set_to_none=True)
    pixels = torch.zeros(batch, *preparation.crop, len(preparation.mean), dtype=torch.uint8)
    with torch.autocast(device.type, torch.bfloat16, enabled=prepared.precision == "bf16"):
        answers = model.train()(ToInput(preparation, device)(pixels))
    error = F.cross_entropy(answers.float(), answers.new_zeros(batch, dtype=torch.long))
    error.backward()  # type: ignore[no-untyped-call]
