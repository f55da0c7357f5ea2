from __future__ import annotations

from functools import partial

import pytest
import torch

from rnn_cells import BACKENDS, GRU, LSTM, RNN

LAYERS = {"RNN": RNN, "GRU": GRU, "GRU_reset_after": partial(GRU, reset_after=True), "LSTM": LSTM}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=LAYERS)
def layer_type(request):
    """Each kind of layer in turn, both forms of the GRU among them."""
    return LAYERS[request.param]


@pytest.fixture(params=[name for name in BACKENDS if name != "triton"])  # which has no float64: test_triton.py
def build(request):
    """Builds layers on each backend in turn, in float64; skips what a backend says it can't run."""

    def build(layer_type, *args, dtype=torch.float64, **kwargs):
        layer = layer_type(*args, **kwargs, backend=request.param).to(dtype)
        for cell in layer.cells:
            x = torch.zeros(1, 1, cell.input_size, dtype=dtype)
            if reason := BACKENDS[request.param].why_not(cell, x):
                pytest.skip(f"{request.param}: {reason}")
        return layer

    return build
