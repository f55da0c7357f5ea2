"""The curve of a network's memory, against closed forms and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rnn_cells import GRU, LSTM, RNN, BiLSTM, Cell, Recurrent
from runs import memory
from runs.memory import examples, lag_below, memory_curve, memory_of_run
from tasks import Identity, Persistence, SequenceModel

LAYERS = {"RNN": RNN, "GRU": GRU, "GRU_reset_after": partial(GRU, reset_after=True), "LSTM": LSTM}
F, H, T, B = 2, 3, 7, 4


class Reader(nn.Module):
    """As much of a task as has a network."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.model = SequenceModel(Identity(encoder.input_size), encoder, 1)


def curve_of(encoder: Any, x: Tensor, **batch: Tensor) -> Any:
    return memory_curve(Reader(encoder), {"inputs": x, **batch})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def at_rest(recurrent: Tensor) -> RNN:
    """An RNN whose state stays at 0, where tanh has the derivative 1: dh_t/dh_{t-1} is its matrix."""
    layer = RNN(F, len(recurrent), bias=False).double()
    with torch.no_grad():
        layer.cells[0].weight_hh.copy_(recurrent)
    return layer


def test_an_orthogonal_matrix_forgets_nothing() -> None:
    orthogonal = torch.linalg.qr(torch.randn(H, H, dtype=torch.float64)).Q
    curve = curve_of(at_rest(orthogonal), torch.zeros(B, T, F, dtype=torch.float64))
    assert curve["lags"] == list(range(T))
    assert curve["norm"] == {"forwards": pytest.approx([1.0] * T)}
    assert curve["sequences"] == B


def test_a_diagonal_matrix_forgets_by_the_powers_of_its_entries() -> None:
    entries = torch.tensor([0.9, -0.5, 0.1, 1.1], dtype=torch.float64)
    curve = curve_of(at_rest(entries.diag()), torch.zeros(B, T, F, dtype=torch.float64))
    expected = [(entries ** (2 * lag)).mean().sqrt().item() for lag in range(T)]
    assert curve["norm"]["forwards"] == pytest.approx(expected)


class Leaky(Cell):
    """h = (1 - 0.3) * h + 0.3 * tanh(x W + b)."""

    num_gates = 1

    def recur(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (0.7 * state[0] + 0.3 * torch.tanh(gates),)


def test_a_leaky_cell_forgets_at_its_rate_whatever_it_reads() -> None:
    curve = curve_of(Recurrent(Leaky, F, 1).double(), torch.randn(B, T, F, dtype=torch.float64))
    assert curve["norm"]["forwards"] == pytest.approx([0.7**lag for lag in range(T)])
    assert lag_below(curve["norm"]["forwards"], 0.5) == 2
    assert lag_below(curve["norm"]["forwards"], 0.01) is None


def by_differences(cell: Any, x: Tensor) -> list[float]:
    """The curve of one direction by central differences: (B, T, F) inputs, one perturbed number at a time."""
    norms = np.zeros(x.shape[1])
    for sequence in x.split(1):
        states = [cell.initial_state(1)]
        for t in range(x.shape[1]):
            states.append(cell(sequence[:, t], states[-1])[1])
        for lag in range(x.shape[1]):
            squares = 0.0
            for part, value in enumerate(states[-1 - lag]):
                for number in range(value.shape[1]):
                    ends = []
                    for step in (1e-6, -1e-6):
                        state = tuple(each.clone() for each in states[-1 - lag])
                        state[part][0, number] += step
                        for t in range(x.shape[1] - lag, x.shape[1]):
                            state = cell(sequence[:, t], state)[1]
                        ends.append(state[0])
                    squares += ((ends[0] - ends[1]) / 2e-6).square().sum().item()
            norms[lag] += np.sqrt(squares / value.shape[1]) / len(x)
    return norms.tolist()


@torch.no_grad()
@pytest.mark.parametrize("layer_type", LAYERS.values(), ids=LAYERS)
def test_every_cells_curve_is_that_of_finite_differences(layer_type: Callable[..., Recurrent]) -> None:
    layer, x = layer_type(F, H).double(), torch.randn(B, T, F, dtype=torch.float64)
    curve = curve_of(layer, x)
    assert curve["norm"]["forwards"] == pytest.approx(by_differences(layer.cells[0], x), rel=1e-6)


@torch.no_grad()
def test_of_both_directions_the_second_is_measured_from_the_first_step() -> None:
    layer, x = BiLSTM(F, H).double(), torch.randn(B, T, F, dtype=torch.float64)
    norms = curve_of(layer, x)["norm"]
    assert norms["forwards"] == pytest.approx(by_differences(layer.cells[0], x), rel=1e-6)
    assert norms["backwards"] == pytest.approx(by_differences(layer.cells[1], x.flip(1)), rel=1e-6)


@torch.no_grad()
def test_of_stacked_layers_the_top_one_is_measured_on_what_it_reads() -> None:
    layer, x = BiLSTM(F, H, num_layers=2).double(), torch.randn(B, T, F, dtype=torch.float64)
    below = BiLSTM(F, H).double()
    below.cells[0].load_state_dict(layer.cells[0].state_dict())
    below.cells[1].load_state_dict(layer.cells[1].state_dict())
    outputs, _ = below(x)
    norms = curve_of(layer, x)["norm"]
    assert norms["forwards"] == pytest.approx(by_differences(layer.cells[2], outputs), rel=1e-6)
    assert norms["backwards"] == pytest.approx(by_differences(layer.cells[3], outputs.flip(1)), rel=1e-6)


def test_sequences_are_cut_to_the_shortest_and_padding_is_not_read() -> None:
    layer, x = GRU(F, H), torch.randn(B, T, F)
    x[1, 5:] = torch.nan
    assert curve_of(layer, x, lengths=torch.tensor([7, 5, 6, 7])) == curve_of(layer, x[:, :5])
    assert curve_of(layer, x, lengths=torch.tensor([7, 0, 6, 7])) is None


def test_a_norm_that_is_next_to_nothing_is_the_last_one_computed() -> None:
    norms = curve_of(at_rest(1e-5 * torch.eye(H)), torch.zeros(1, T, F, dtype=torch.float64))["norm"]["forwards"]
    assert norms == pytest.approx([1, 1e-5, 1e-10, 1e-15, 0, 0, 0], rel=1e-6)


def test_dropout_is_off_while_the_memory_is_measured() -> None:
    task = Reader(GRU(F, H, num_layers=2, dropout=0.5))
    task.model.inputs = nn.Dropout(0.5)  # type: ignore[assignment]
    batch = {"inputs": torch.randn(B, T, F)}
    assert memory_curve(task.train(), batch) == memory_curve(task.train(), batch)  # type: ignore[arg-type]


def test_without_cells_there_is_no_memory() -> None:
    batch = {"inputs": torch.zeros(B, T, F)}
    for model in (SimpleNamespace(encoder=nn.Identity()), Persistence({})):
        assert memory_curve(SimpleNamespace(model=model), batch) is None  # type: ignore[arg-type]
        assert memory_of_run(SimpleNamespace(model=model), None) is None  # type: ignore[arg-type]


class Split(list):
    """A split whose examples are their positions."""

    def __getitem__(self, positions: Any) -> Any:
        return {"inputs": torch.tensor(positions).float()[:, None, None].expand(-1, T, F)}


def test_texts_are_the_longest_of_the_split_and_windows_lie_all_over_it() -> None:
    windows, texts = Split(range(101)), Split(range(101))
    assert examples(windows, 5)["inputs"][:, 0, 0].tolist() == [0, 25, 50, 75, 100]
    assert examples(Split(range(2)), 5)["inputs"][:, 0, 0].tolist() == [0, 1]
    texts.lengths = np.arange(101) % 10  # type: ignore[attr-defined]
    assert examples(texts, 3)["inputs"][:, 0, 0].tolist() == [79, 89, 99]


def test_a_run_takes_fewer_sequences_of_a_large_network(monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = Reader(GRU(F, H))
    for products, sequences in ((1e9, 8), (3.5 * T * H * 3 * H * H, 3), (1, 1)):
        monkeypatch.setattr(memory, "PRODUCTS", products)
        curve = memory_of_run(task, Split(range(20)))
        assert curve is not None
        assert curve["sequences"] == sequences


class Stubborn(Leaky):
    """What torch.func can't differentiate."""

    def recur(self, gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(state[0].detach().numpy() * 0.5) + gates,)


def test_a_cell_that_can_not_be_measured_costs_a_run_nothing_but_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    task: Any = Reader(Recurrent(Stubborn, F, H))
    assert memory_of_run(task, Split(range(20))) is None
    assert "can't be computed" in caplog.text
