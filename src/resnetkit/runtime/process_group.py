"""The processes that torchrun starts, as one run. Small things are told as JSON, and nothing as a pickle."""

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
from safetensors.torch import load as unpacked
from safetensors.torch import save as packed
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from resnetkit.errors import MachineError, UsageError
from resnetkit.runtime.device import select_device
from resnetkit.runtime.distributed import LaunchInfo, count_cores
from resnetkit.runtime.failures import FailureReporter
from resnetkit.runtime.rendezvous import create_prefix_store

_BUCKET_NUMEL = 8 * 2**20  # numbers that are added at once


class TorchProcessGroup:
    """Several processes that ask the same questions in the same order: see `resnetkit.runtime.distributed.Ranks`."""

    def __init__(self, launch: LaunchInfo, failure_reporter: FailureReporter) -> None:
        self.rank, self.world_size, self.failure_reporter = launch.rank, launch.world_size, failure_reporter

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_max(self, value: int) -> int:
        tensor = torch.tensor([value])
        with self.translate_errors():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def all_reduce_any(self, value: bool) -> bool:
        return bool(self.all_reduce_max(int(value)))

    def run_on_main(self, compute: Callable[[], Any]) -> Any:
        """Where it fails, the others, which wait for it here, hear of that from the board."""
        data = json.dumps(compute()).encode() if self.is_main else b""
        return json.loads(self._broadcast_bytes(data))

    def all_gather(self, value: Any) -> list[Any]:
        data = _bytes_to_tensor(json.dumps(value).encode())
        max_size = self.all_reduce_max(len(data))
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        buffers = [torch.empty(max_size, dtype=torch.uint8) for _ in range(self.world_size)]
        with self.translate_errors():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            dist.all_gather(buffers, torch.cat([data, data.new_zeros(max_size - len(data))]))
        return [json.loads(buffer[: int(size)].numpy().tobytes()) for buffer, size in zip(buffers, sizes, strict=True)]

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        cpu_tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        return unpacked(self._broadcast_bytes(packed(cpu_tensors) if self.is_main else b""))

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Several tensors at once; which numbers are added in which order depends on the world alone."""
        with self.translate_errors(), torch.no_grad():
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
        with self.translate_errors():
            dist.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """For the others. Where they do not answer, that is an error of theirs."""
        try:
            yield
        except RuntimeError as error:
            raise self.failure_reporter.explain_loss(str(error)) from error


def _bytes_to_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _split_into_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, as many as are added at once; those of one are of one type."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (
            sum(map(Tensor.numel, bucket)) + tensor.numel() > _BUCKET_NUMEL or tensor.dtype != bucket[0].dtype
        ):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextlib.contextmanager
def process_group(launch: LaunchInfo, device: str, timeout: float) -> Iterator[tuple[TorchProcessGroup, str]]:
    """All processes of the run, and the device of this one. An error of one ends all, and is told once."""
    local_device = _select_local_device(device, launch)
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1 where nobody has said anything
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
    """A GPU for each process of a machine, or the CPU for all."""
    selected = select_device(device)
    if selected.type == "cpu":
        return selected
    if selected.index is not None:
        raise UsageError("each process takes a GPU of its own", where=f"--device {device}", fix="--device cuda")
    if launch.local_world_size > torch.cuda.device_count():
        what = f"{launch.local_world_size} processes on this machine, and {torch.cuda.device_count()} GPUs"
        raise MachineError(what, where="--nproc-per-node", fix="as many processes as GPUs, or --device cpu")
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


def _connect(launch: LaunchInfo, device: torch.device, timeout: float) -> FailureReporter:
    """All processes, at the address that torchrun names."""
    timeout_delta = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store = create_prefix_store(next(rendezvous("env://", timeout=timeout_delta))[0], launch, timeout)
        dist.init_process_group(
            backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout_delta
        )
        return FailureReporter(launch, store, timeout)
    except (ValueError, RuntimeError, TimeoutError) as error:
        what = (
            f"the {launch.world_size} processes of this run do not find each other: {str(error).splitlines()[0][:200]}"
        )
        where = f"process {launch.rank}, at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        fix = "start all of them with torchrun, with one address that every machine reaches"
        raise MachineError(what, where=where, fix=fix) from error
