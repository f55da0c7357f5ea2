"""Batch order as a pure function of (seed, epoch), and a loader that resumes inside an epoch.

A run that is killed and resumed must see the same batches in the same order as one never killed. So nothing
here holds a random state: the order of epoch `e` is computed from `(seed, e)` alone, and the loader's whole
state is two integers, the epoch and how many of its batches were handed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from .sources import DataError

POOL = 50  # batches per pool: long enough that a sorted pool wastes little padding, short enough to stay random


class BatchOrder(Sampler[list[int]]):
    """Batches of positions `0 … size-1`: shuffled, bucketed by length, dealt out among processes.

    Args:
        size: number of examples.
        batch_size: examples per batch at most; the last may be smaller, and in evaluation all are where a process
            would otherwise have none.
        lengths: one length per example; batches then hold examples of similar length, so that padding to the
            longest of a batch wastes little.
        shuffle: a new order every epoch; otherwise always the same: examples keep their order, or with `lengths` are
            sorted by them, the batches in an order of their own.
        seed: of the order.
        rank, world_size: this process takes batches `rank, rank + world_size, …`; in training every process gets
            the same number of batches, in evaluation no example is repeated or lost.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        lengths: Sequence[int] | np.ndarray | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.shuffle, self.seed = size, shuffle, seed
        self.batch_size = batch_size if shuffle else max(1, min(batch_size, size // world_size))
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = -(-self.size // self.batch_size)
        if self.shuffle:
            return batches // self.world_size
        return len(range(self.rank, batches, self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch)

    def batches(self, epoch: int) -> list[list[int]]:
        """This process's batches of `epoch`."""
        generator = np.random.default_rng([self.seed, epoch if self.shuffle else 0])
        order = generator.permutation(self.size) if self.shuffle else np.arange(self.size)
        if self.lengths is not None:
            pool = self.batch_size * (POOL if self.shuffle else max(1, self.size))
            pools = [order[start : start + pool] for start in range(0, self.size, pool)]
            order = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools] or [order])
        batches = [order[start : start + self.batch_size].tolist() for start in range(0, self.size, self.batch_size)]
        if self.shuffle or self.lengths is not None:  # of an evaluation, too: its first batches are a sample of all
            batches = [batches[position] for position in generator.permutation(len(batches))]
        return batches[self.rank :: self.world_size][: len(self)]


class SameOrder(BatchOrder, SequentialSampler):  # pyright: ignore[reportGeneralTypeIssues]
    """The batches of the first epoch in every epoch, for a trainer that overfits a few of them.

    Lightning replaces every sampler that is no `SequentialSampler` when it overfits.
    """

    def batches(self, epoch: int) -> list[list[int]]:
        """This process's batches, whatever the epoch."""
        return super().batches(0)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over whole batches whose `state_dict` says where in which epoch it stands.

    `dataset[positions]` must return a collated batch: one vectorised look-up instead of one call per example.
    """

    def __init__(self, dataset: Dataset[Any], order: BatchOrder, **options: Any) -> None:
        super().__init__(dataset, batch_size=None, sampler=order, **options)
        self.order = order
        self._resume_epoch, self._resume_at, self._consumed = -1, 0, 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing runs before the first `next`, by when the trainer has set the epoch.
        self._consumed = self._resume_at if self.order.epoch == self._resume_epoch else 0
        remaining = self.order.batches(self.order.epoch)[self._consumed :]
        self._resume_epoch = -1
        for batch in DataLoader(
            self.dataset,
            batch_size=None,
            sampler=remaining,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        ):
            self._consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: the epoch, and how many of its batches were handed out."""
        return {"epoch": self.order.epoch, "consumed": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the batches that `state` has already handed out."""
        self._resume_epoch, self._resume_at = state["epoch"], state["consumed"]


def split_loader(
    dataset: Any,
    split: str,
    trainer: Any,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    lengths: np.ndarray | None = None,
) -> ResumableLoader:
    """Batches of one split for this process of `trainer`, which may be None; only `train` is shuffled.

    With `overfit_batches`, the trainer sees the same batches in every epoch.

    Raises:
        DataError: if some process would have no batch.
    """
    rank, world_size = getattr(trainer, "global_rank", 0), getattr(trainer, "world_size", 1)
    make_order = SameOrder if getattr(trainer, "overfit_batches", 0) else BatchOrder
    order = make_order(len(dataset), batch_size, lengths, split == "train", seed, rank, world_size)
    if -(-len(dataset) // order.batch_size) < world_size:  # the same answer on every process
        raise DataError(
            f"the {split} split has {len(dataset)} examples in batches of {order.batch_size}, fewer batches than the "
            f"{world_size} processes: lower trainer.devices{' or data.batch_size' if order.batch_size > 1 else ''}"
        )
    device = getattr(getattr(trainer, "strategy", None), "root_device", torch.device("cpu"))
    return ResumableLoader(dataset, order, num_workers=num_workers, pin_memory=device.type == "cuda")
