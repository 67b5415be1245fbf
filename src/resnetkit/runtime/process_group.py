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
from resnetkit.runtime.device import pick
from resnetkit.runtime.distributed import Launch, cores
from resnetkit.runtime.failures import Board
from resnetkit.runtime.rendezvous import fresh

_BUCKET = 8 * 2**20  # numbers that are added at once


class Group:
    """Several processes that ask the same questions in the same order: see `resnetkit.runtime.distributed.Ranks`."""

    def __init__(self, launch: Launch, board: Board) -> None:
        self.rank, self.world, self.board = launch.rank, launch.world, board

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def most(self, number: int) -> int:
        told = torch.tensor([number])
        with self.waiting():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    def agreed(self, said: bool) -> bool:
        return bool(self.most(int(said)))

    def first(self, make: Callable[[], Any]) -> Any:
        """Where it fails, the others, which wait for it here, hear of that from the board."""
        data = json.dumps(make()).encode() if self.writes else b""
        return json.loads(self._broadcast(data))

    def each(self, value: Any) -> list[Any]:
        data = _bytes(json.dumps(value).encode())
        longest = self.most(len(data))
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        told = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        with self.waiting():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            dist.all_gather(told, torch.cat([data, data.new_zeros(longest - len(data))]))
        return [json.loads(one[: int(n)].numpy().tobytes()) for one, n in zip(told, sizes, strict=True)]

    def share(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        return unpacked(self._broadcast(packed(plain) if self.writes else b""))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Several tensors at once; which numbers are added in which order depends on the world alone."""
        with self.waiting(), torch.no_grad():
            for some in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in some])
                dist.all_reduce(flat)
                parts = torch.split(flat, [tensor.numel() for tensor in some])
                for tensor, part in zip(some, parts, strict=True):
                    tensor.copy_(part.view_as(tensor))

    def _broadcast(self, data: bytes) -> bytes:
        told = torch.empty(self.most(len(data)), dtype=torch.uint8)
        if self.writes:
            told.copy_(_bytes(data))
        with self.waiting():
            dist.broadcast(told, 0)
        return told.numpy().tobytes()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For the others. Where they do not answer, that is an error of theirs."""
        try:
            yield
        except RuntimeError as error:
            raise self.board.lost(str(error)) from error


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, as many as are added at once; those of one are of one type."""
    some: list[Tensor] = []
    for tensor in tensors:
        if some and (sum(map(Tensor.numel, some)) + tensor.numel() > _BUCKET or tensor.dtype != some[0].dtype):
            yield some
            some = []
        some.append(tensor)
    if some:
        yield some


@contextlib.contextmanager
def joined(launch: Launch, device: str, timeout: float) -> Iterator[tuple[Group, str]]:
    """All processes of the run, and the device of this one. An error of one ends all, and is told once."""
    place = _place(device, launch)
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1 where nobody has said anything
        torch.set_num_threads(cores())
    board = _meet(launch, place, timeout)
    try:
        with board.told():
            group = Group(launch, board)
            board.hosts = group.each(socket.gethostname())
            yield group, str(place)
    finally:
        dist.destroy_process_group()


def _place(device: str, launch: Launch) -> torch.device:
    """A GPU for each process of a machine, or the CPU for all."""
    place = pick(device)
    if place.type == "cpu":
        return place
    if place.index is not None:
        raise UsageError("each process takes a GPU of its own", where=f"--device {device}", fix="--device cuda")
    if launch.local_world > torch.cuda.device_count():
        what = f"{launch.local_world} processes on this machine, and {torch.cuda.device_count()} GPUs"
        raise MachineError(what, where="--nproc-per-node", fix="as many processes as GPUs, or --device cpu")
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


def _meet(launch: Launch, place: torch.device, timeout: float) -> Board:
    """All processes, at the address that torchrun names."""
    patience = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    try:
        store = fresh(next(rendezvous("env://", timeout=patience))[0], launch, timeout)
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world, timeout=patience)
        return Board(launch, store, timeout)
    except (ValueError, RuntimeError, TimeoutError) as error:
        what = f"the {launch.world} processes of this run do not find each other: {str(error).splitlines()[0][:200]}"
        where = f"process {launch.rank}, at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        fix = "start all of them with torchrun, with one address that every machine reaches"
        raise MachineError(what, where=where, fix=fix) from error
