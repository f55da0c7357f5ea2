"""How a backend is chosen. That each one computes the right thing is what the other files run every backend for."""

from __future__ import annotations

import logging
from types import ModuleType

import pytest
import torch

from rnn_cells import BACKENDS, GRU, LSTM, RNN, GRUCell, backends, scan
from rnn_cells.backends import choose, reference

X = torch.zeros(2, 4, 3)  # (B, T, I)


class Fake(ModuleType):
    """A backend that computes as the reference does, counts its calls, and may have a reason not to run."""

    def __init__(self, reason=None):
        super().__init__("fake")
        self.reason, self.calls = reason, []

    def why_not(self, cell, x, *others):
        return self.reason

    def scan(self, cell, x, state, lengths=None, reverse=False):
        self.calls.append((type(cell).__name__, tuple(x.shape), lengths, reverse))
        return reference.scan(cell, x, state, lengths, reverse)


@pytest.fixture
def register(monkeypatch):
    """Puts a fake backend in front of the others."""

    def register(fake):
        monkeypatch.setattr(backends, "BACKENDS", {"fake": fake, **BACKENDS})
        return fake

    return register


def test_reference_is_the_last_resort_and_runs_anything():
    assert list(BACKENDS)[-1] == "reference"
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        outputs, _ = scan(GRUCell(3, 5).to(dtype), X.to(dtype), backend="reference")
        assert outputs.dtype == dtype
        assert outputs.isfinite().all()


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match=f"backend must be one of auto, {', '.join(BACKENDS)}; got 'fpga'"):
        LSTM(3, 5, backend="fpga")(X)


def test_auto_takes_the_first_backend_that_can_run(register):
    fake = register(Fake())
    assert choose("auto", [GRUCell(3, 5)], X) is fake


def test_auto_skips_a_backend_that_cannot_run_and_says_why_once(register, caplog):
    fake = register(Fake("this test gives no compiler"))
    caplog.set_level(logging.INFO, logger="rnn_cells")
    layer = GRU(3, 5, num_layers=2)
    layer(X)
    layer(X)
    assert fake.calls == []
    told = [record.getMessage() for record in caplog.records if "this test gives no compiler" in record.getMessage()]
    assert len(told) == 1
    assert "runs GRUCell on " in told[0]
    assert "not fake: this test gives no compiler" in told[0]


def test_a_backend_asked_for_by_name_raises_with_its_reason(register):
    fake = register(Fake("needs a GPU"))
    with pytest.raises(ValueError, match="backend 'fake' can't run LSTMCell here: needs a GPU"):
        LSTM(3, 5, backend="fake")(X)
    assert fake.calls == []


def test_a_backend_asked_for_by_name_runs_although_another_is_faster(register):
    fake = register(Fake())
    assert choose("reference", [GRUCell(3, 5)], X) is reference
    RNN(3, 5, backend="reference")(X)
    assert fake.calls == []


def test_a_backend_gets_each_layer_and_direction_time_first(register):
    fake = register(Fake())
    LSTM(3, 5, num_layers=2, bidirectional=True, backend="fake")(X, lengths=[4, 2])
    assert [(cell, shape, reverse) for cell, shape, _, reverse in fake.calls] == [
        ("LSTMCell", (4, 2, 3), False),
        ("LSTMCell", (4, 2, 3), True),
        ("LSTMCell", (4, 2, 10), False),
        ("LSTMCell", (4, 2, 10), True),
    ]
    assert all(lengths.tolist() == [4, 2] for _, _, lengths, _ in fake.calls)


def test_a_backend_that_fails_is_not_covered_up(register):
    class Broken(Fake):
        def scan(self, *args, **kwargs):
            raise RuntimeError("wrong kernel")

    register(Broken())
    with pytest.raises(RuntimeError, match="wrong kernel"):
        LSTM(3, 5)(X)


def test_scan_takes_the_backend_by_name_too(register):
    fake = register(Fake())
    scan(GRUCell(3, 5), X.transpose(0, 1), backend="fake")
    assert fake.calls == [("GRUCell", (4, 2, 3), None, False)]
