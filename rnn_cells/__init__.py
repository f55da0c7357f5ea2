"""Recurrent cells whose equations you can read, and layers that run them over time."""

from rnn_cells.backends import BACKENDS
from rnn_cells.cells import Cell, GRUCell, LSTMCell, RNNCell, State
from rnn_cells.layers import GRU, LSTM, RNN, BiLSTM, Recurrent, from_torch, scan, to_torch

__all__ = [
    "BACKENDS",
    "GRU",
    "LSTM",
    "RNN",
    "BiLSTM",
    "Cell",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "State",
    "from_torch",
    "scan",
    "to_torch",
]
