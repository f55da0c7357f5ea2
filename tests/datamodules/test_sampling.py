from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from datamodules.sampling import BatchOrder, ResumableLoader, split_loader
from datamodules.sources import DataError


class Positions(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, positions: list[int]) -> dict[str, torch.Tensor]:
        return {"index": torch.tensor(positions)}


def seen(loader: ResumableLoader) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [position for batch in batches for position in batch]


def loader(epoch: int = 0, workers: int = 0) -> ResumableLoader:
    order = BatchOrder(23, 3, lengths=np.arange(23) % 7, shuffle=True, seed=5)
    order.set_epoch(epoch)
    return ResumableLoader(Positions(23), order, num_workers=workers)


def of_rank(rank: int, processes: int, size: int, split: str) -> ResumableLoader:
    trainer = SimpleNamespace(global_rank=rank, world_size=processes)
    return split_loader(Positions(size), split, trainer, batch_size=8, num_workers=0, seed=0)


orders = {
    "size": st.integers(0, 200),
    "batch_size": st.integers(1, 20),
    "shuffle": st.booleans(),
    "bucketed": st.booleans(),
    "epoch": st.integers(0, 5),
}


@given(**orders)
def test_every_example_comes_exactly_once_per_epoch(size, batch_size, shuffle, bucketed, epoch) -> None:
    lengths = np.arange(size) % 11 if bucketed else None
    order = BatchOrder(size, batch_size, lengths, shuffle, seed=3)
    batches = order.batches(epoch)
    assert sorted(flat(batches)) == list(range(size))
    assert len(batches) == len(order)
    assert sum(len(batch) != batch_size for batch in batches) <= 1


@given(world_size=st.integers(1, 4), **orders)
def test_processes_share_an_epoch_without_overlap(world_size, size, batch_size, shuffle, bucketed, epoch) -> None:
    lengths = np.arange(size) % 11 if bucketed else None
    ranks = [BatchOrder(size, batch_size, lengths, shuffle, 3, rank, world_size) for rank in range(world_size)]
    parts = [order.batches(epoch) for order in ranks]
    assert [len(order) for order in ranks] == [len(part) for part in parts]
    together = [tuple(batch) for part in parts for batch in part]
    assert len(set(together)) == len(together)
    assert all(len(batch) <= batch_size for batch in together)
    if shuffle:
        # Processes step together: all take equally many, at most one batch fewer than there are processes is left.
        whole = BatchOrder(size, batch_size, lengths, shuffle, seed=3).batches(epoch)
        assert set(together) <= {tuple(batch) for batch in whole}
        assert len({len(part) for part in parts}) == 1
        assert len(whole) - len(together) < world_size
    else:
        assert sorted(flat([list(batch) for batch in together])) == list(range(size))
        assert all(parts) == (size >= world_size)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("size", "processes"), [(7, 2), (5, 4), (2, 2), (9, 4)])
def test_an_evaluation_gives_every_process_a_batch_and_every_example_to_one(
    split: str, size: int, processes: int
) -> None:
    parts = [flat(seen(of_rank(rank, processes, size, split))) for rank in range(processes)]
    assert all(parts)
    assert sorted(flat(parts)) == list(range(size))


def test_fewer_examples_than_processes_are_refused_by_every_process() -> None:
    for rank in range(4):
        with pytest.raises(DataError, match=r"the val split has 3 examples.*4 processes: lower trainer\.devices$"):
            of_rank(rank, 4, 3, "val")
        with pytest.raises(DataError, match=r"the train split has 9 examples.*trainer\.devices or data\.batch_size"):
            of_rank(rank, 4, 9, "train")


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        return BatchOrder(50, 4, shuffle=True, seed=seed).batches(epoch)

    torch.manual_seed(1)
    first = batches(0, 7)
    torch.manual_seed(2)
    np.random.default_rng().random()
    assert batches(0, 7) == first
    assert batches(0, 8) != first
    assert batches(1, 7) != first


def test_evaluation_keeps_the_order_of_the_examples() -> None:
    assert flat(BatchOrder(10, 3).batches(4)) == list(range(10))


def test_evaluation_takes_batches_of_like_lengths_in_an_order_that_is_always_the_same_but_not_theirs() -> None:
    lengths = np.arange(100) // 2
    batches = BatchOrder(100, 10, lengths=lengths).batches(0)
    assert sorted(batches) == [list(range(start, start + 10)) for start in range(0, 100, 10)]
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts)
    assert BatchOrder(100, 10, lengths=lengths).batches(3) == batches


def test_bucketing_by_length_saves_most_of_the_padding() -> None:
    lengths = np.random.default_rng(0).geometric(0.02, 5000)

    def padding(batches: list[list[int]]) -> int:
        return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches)

    random = padding(BatchOrder(5000, 32, None, shuffle=True).batches(0))
    assert padding(BatchOrder(5000, 32, lengths, shuffle=True).batches(0)) < 0.15 * random


@pytest.mark.parametrize("consumed", [0, 1, 4, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_continues_exactly(consumed: int, workers: int) -> None:
    uninterrupted = seen(loader(epoch=2))
    killed = loader(epoch=2)
    iterator = iter(killed)
    for _ in range(consumed):
        next(iterator)

    resumed = loader(epoch=0, workers=workers)
    resumed.load_state_dict(killed.state_dict())
    resumed.order.set_epoch(2)
    assert seen(resumed) == uninterrupted[consumed:]
    assert seen(resumed) == uninterrupted
    resumed.order.set_epoch(3)
    assert seen(resumed) == seen(loader(epoch=3))


def test_a_loader_resumed_twice_within_an_epoch_continues_exactly() -> None:
    uninterrupted = seen(loader())
    state = {"epoch": 0, "consumed": 2}
    for taken in (3, 1):
        again = loader()
        again.load_state_dict(state)
        iterator = iter(again)
        for _ in range(taken):
            next(iterator)
        state = again.state_dict()
    last = loader()
    last.load_state_dict(state)
    assert state == {"epoch": 0, "consumed": 6}
    assert seen(last) == uninterrupted[6:]


def test_workers_do_not_change_the_batches() -> None:
    assert seen(loader(epoch=1, workers=2)) == seen(loader(epoch=1, workers=0))


def test_the_trainer_can_set_the_epoch_through_the_sampler() -> None:
    data = loader()
    data.sampler.set_epoch(4)  # type: ignore[attr-defined]
    assert seen(data) == seen(loader(epoch=4))
