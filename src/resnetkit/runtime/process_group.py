"""The processes that torchrun starts, as one process group.

Objects travel between them as JSON and tensors as safetensors, never as pickles.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from resnetkit.errors import MachineError, UsageError
from resnetkit.runtime.device import select_device
from resnetkit.runtime.distributed import LaunchInfo, ProcessGroup, count_cores
from resnetkit.runtime.failures import FailureReporter
from resnetkit.runtime.rendezvous import create_prefix_store

_BUCKET_NUMEL = 8 * 2**20  # elements in one all_reduce


class TorchProcessGroup(ProcessGroup):
    """The processes that torchrun has started, connected by torch.distributed.

    Args:
        launch: rank and world size of this process.
        failure_reporter: explains why a collective did not finish.
    """

    def __init__(self, launch: LaunchInfo, failure_reporter: FailureReporter) -> None:
        self.rank, self.world_size, self.failure_reporter = launch.rank, launch.world_size, failure_reporter

    def all_reduce_max(self, value: int) -> int:
        tensor = torch.tensor([value])
        with self._explain_errors():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def run_on_main(self, compute: Callable[[], Any]) -> Any:
        """Run a function on rank 0 and broadcast its result.

        The other ranks read an error of the function from the key-value store.
        """
        return json.loads(self._broadcast_bytes(json.dumps(compute()).encode() if self.is_main else b""))

    def all_gather(self, value: Any) -> list[Any]:
        data = _bytes_to_tensor(json.dumps(value).encode())
        max_size = self.all_reduce_max(len(data))
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        buffers = [torch.empty(max_size, dtype=torch.uint8) for _ in range(self.world_size)]
        with self._explain_errors():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            dist.all_gather(buffers, torch.cat([data, data.new_zeros(max_size - len(data))]))
        return [json.loads(buffer[: int(size)].numpy().tobytes()) for buffer, size in zip(buffers, sizes, strict=True)]

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        cpu_tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        return deserialize(self._broadcast_bytes(serialize(cpu_tensors) if self.is_main else b""))

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum in buckets; the order of the additions depends only on the world size."""
        with self._explain_errors(), torch.no_grad():
            for bucket in _split_into_buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                chunks = torch.split(flat, [tensor.numel() for tensor in bucket])
                for tensor, chunk in zip(bucket, chunks, strict=True):
                    tensor.copy_(chunk.view_as(tensor))

    def _broadcast_bytes(self, data: bytes) -> bytes:
        buffer = torch.empty(self.all_reduce_max(len(data)), dtype=torch.uint8)
        if self.is_main:
            buffer.copy_(_bytes_to_tensor(data))
        with self._explain_errors():
            dist.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Replace an exception of a collective by the reason that another rank has reported."""
        try:
            yield
        except RuntimeError as error:
            raise self.failure_reporter.explain_loss(str(error)) from error


def _bytes_to_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _split_into_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Divide tensors into lists of one dtype; a list has one tensor or up to `_BUCKET_NUMEL` elements."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        numel = tensor.numel() + sum(map(Tensor.numel, bucket))
        if bucket and (numel > _BUCKET_NUMEL or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextlib.contextmanager
def process_group(launch: LaunchInfo, device: str, timeout: float) -> Iterator[tuple[TorchProcessGroup, str]]:
    """Connect the processes of a run during the body; the first error of any process ends all of them.

    Args:
        launch: what torchrun says about this process.
        device: the device that the user selects: auto, cpu or cuda.
        timeout: the largest duration of a collective, in seconds.

    Returns:
        The process group and the name of this process's device.
    """
    local_device = _select_local_device(device, launch)
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1 if the user has not set the variable
        torch.set_num_threads(count_cores())
    failure_reporter = _connect(launch, local_device, timeout)
    try:
        with failure_reporter.report_errors():
            group = TorchProcessGroup(launch, failure_reporter)
            failure_reporter.hosts = group.all_gather(socket.gethostname())
            yield group, str(local_device)
    finally:
        dist.destroy_process_group()


def _select_local_device(device: str, launch: LaunchInfo) -> torch.device:
    """Return the CPU, or the GPU with the local rank of this process."""
    selected = select_device(device)
    if selected.type == "cpu":
        return selected
    if selected.index is not None:
        raise UsageError("torchrun assigns a GPU to each process", where=f"--device {device}", fix="--device cuda")
    n_gpus = torch.cuda.device_count()
    if launch.local_world_size > n_gpus:
        what = f"{launch.local_world_size} processes on this machine, but {n_gpus} GPUs"
        fix = "start at most one process per GPU, or pass --device cpu"
        raise MachineError(what, where="--nproc-per-node", fix=fix)
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


def _connect(launch: LaunchInfo, device: torch.device, timeout: float) -> FailureReporter:
    """Initialize torch.distributed at the address that torchrun has set."""
    rank, world_size, timeout_delta = launch.rank, launch.world_size, timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store = create_prefix_store(next(rendezvous("env://", timeout=timeout_delta))[0], launch, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout_delta)
        return FailureReporter(launch, store, timeout)
    except (ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).splitlines()[0][:200]
        raise MachineError(
            f"the {world_size} processes of this run could not connect to each other: {reason}",
            where=f"rank {rank}, at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}",
            fix="start all of them with torchrun, with a --master-addr that every machine can reach",
        ) from error
