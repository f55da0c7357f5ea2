"""Layers: a cell scanned over time, forwards or backwards, stacked.

Legend: B batch, T time, I input_size, H hidden_size, L num_layers, D directions (1 or 2).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from rnn_cells.backends import check_name, choose, name_of, reasons, scan_layer
from rnn_cells.backends.arguments import autocast_dtype, check_lengths, has_hooks
from rnn_cells.cells import Cell, GRUCell, LSTMCell, RNNCell, State, check_type

log = logging.getLogger(__name__)


def scan(
    cell: Cell,
    x: Tensor,
    state: State | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """Run a cell over time.

    Sequence b has `lengths[b]` valid steps. Past them its state stands still, so the final state is that of the last
    valid step, and its outputs are zero; whatever the padding holds, nothing of it is read. With `reverse` the steps
    are taken from each sequence's last valid one down to the first; `outputs[t]` still belongs to `x[t]`:

        lengths = [4, 2], forwards  a0 a1 a2 a3    reverse  a3 a2 a1 a0
                                    b0 b1 .. ..             .. .. b1 b0

    Args:
        cell: the step.
        x: (T, B, I), time first.
        state: tensors (B, H); zeros if not given.
        lengths: (B,) integers between 0 and T; all T if not given.
        reverse: take the steps from last to first.
        backend: `auto`, or a name in `rnn_cells.backends.BACKENDS`.

    Returns:
        Outputs (T, B, H) and the final state, tensors (B, H).

    Raises:
        ValueError: a length, or what the backend wants, doesn't fit.
    """
    if state is None:
        state = cell.initial_state(x.shape[1])
    if lengths is not None:
        check_lengths(lengths, x)
    others = state if lengths is None else (*state, lengths)
    return choose(backend, [cell], x, *others).scan(cell, x, state, lengths, reverse)


class Recurrent(nn.Module):
    """A stack of recurrent layers, in one or both directions, around any cell.

    `RNN`, `GRU`, `LSTM` and `BiLSTM` are this class with the cell filled in, and replace `torch.nn`'s layers of those
    names: same arguments in the same places (batch first by default), same layout of outputs and states, weights
    convertible both ways.

    A cell with hooks, such as one that is pruned, is called step by step, so that they see each step.

    Args:
        cell: builds a cell from `(input_size, hidden_size, bias=…)`: a `Cell` class or a partial of one.
        input_size: I, features per step.
        hidden_size: H, features per direction of the output.
        num_layers: L; each layer reads the outputs of the one below.
        bias: whether the cells have bias terms.
        batch_first: sequences are (B, T, …); otherwise (T, B, …).
        dropout: probability with which outputs are zeroed between layers, in training.
        bidirectional: a second set of cells reads each sequence backwards; outputs are concatenated step by step.
        init: `torch` or `orthogonal`; see `Cell.reset_parameters`.
        backend: `auto` takes the fastest implementation that can run; a name insists on that one.
        recurrent_dropout: probability with which each entry of `weight_hh` is zeroed in training, drawn anew for each
            call and alike for all its steps and sequences (Merity et al. 2018), so that every backend runs it at full
            speed. It does nothing in a cell of your own that doesn't use `weight_hh`.

    Raises:
        TypeError: an argument is of another type, such as one in the wrong place.
        ValueError: an argument is out of range; when called in training, `recurrent_dropout` for a cell whose
            `weight_hh` is computed (`torch.nn.utils.parametrize`).
    """

    def __init__(
        self,
        cell: Callable[..., Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        init: str = "torch",
        backend: str = "auto",
        recurrent_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_type("num_layers", num_layers, Integral)
        for name, flag in {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}.items():
            check_type(name, flag, bool)
        check_type("init", init, str)
        check_type("backend", backend, str)
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        for name, probability in {"dropout": dropout, "recurrent_dropout": recurrent_dropout}.items():
            check_type(name, probability, Real)
            if not 0 <= probability <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {probability}")
        check_name(backend)
        if dropout > 0 and num_layers == 1:
            _warn_of_dropout(dropout)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        self.recurrent_dropout = recurrent_dropout
        self.backend = self.chosen_backend = backend
        self.directions = 2 if bidirectional else 1
        self.output_size = self.directions * hidden_size
        self.cells: Any = nn.ModuleList(
            cell(input_size if layer == 0 else self.output_size, hidden_size, bias=bias)
            for layer in range(num_layers)
            for _ in range(self.directions)
        )
        self.reset_parameters(init)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw new weights for every cell; see `Cell.reset_parameters`."""
        for cell in self.cells:
            cell.reset_parameters(init)

    def forward(
        self,
        x: Tensor,
        state: Tensor | State | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | State]:
        """Run the stack over a batch of sequences.

        Args:
            x: (B, T, I), or (T, B, I) unless `batch_first`; T at least 1.
            state: initial state as `torch.nn` lays it out: (L*D, B, H), for cells with several state tensors (LSTM) a
                tuple of those; zeros if not given.
            lengths: valid steps per sequence, (B,) integers from 0 to T in any order; all T if not given. Outputs past
                a length are zero, final states are those of the last valid step.

        Returns:
            Outputs (B, T, D*H), or (T, B, D*H), and the final state in the layout of `state`.

        Raises:
            ValueError: the shape of an argument, or a length, doesn't fit.
            TypeError: `x` is a `PackedSequence`.
        """
        if isinstance(x, nn.utils.rnn.PackedSequence):
            raise TypeError(
                "give the padded batch and lengths=…, as pad_packed_sequence returns them, not a packed one"
            )
        sequence = x.transpose(0, 1) if self.batch_first and x.ndim == 3 else x
        self._check_input(sequence)
        batch_size = sequence.shape[1]
        initial = None if state is None else self._check_state(state, batch_size)
        if lengths is not None:
            # On the CPU whatever the default device is: there they can be looked at.
            lengths = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
            check_lengths(lengths, sequence)
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer > 0:
                sequence = dropout(sequence, self.dropout, self.training)
            part = slice(layer * self.directions, (layer + 1) * self.directions)
            cells = list(self.cells)[part]
            if self.training and self.recurrent_dropout > 0:
                cells = [_thinned(cell, self.recurrent_dropout) for cell in cells]
            others = (*(initial or ()), *(() if lengths is None else (lengths,)))
            backend = choose(self.backend, cells, sequence, *others)
            mine = None if initial is None else tuple(tensor[part] for tensor in initial)
            sequence, final = scan_layer(backend, cells, sequence, mine, lengths)
            finals.append(final)
        self.chosen_backend = name_of(backend)
        first, *others = finals[0] if len(finals) == 1 else map(torch.cat, zip(*finals, strict=True))
        output = sequence.transpose(0, 1) if self.batch_first else sequence
        return output, (first, *others) if others else first

    def why_not(self, x: Tensor) -> dict[str, str | None]:
        """Why each backend, fastest first, can't run the first layer on input like `x`; None if it can."""
        return reasons(list(self.cells)[: self.directions], x)

    def _check_state(self, state: Tensor | State, batch_size: int) -> State:
        """The tensors of an initial state."""
        tensors = (state,) if isinstance(state, Tensor) else tuple(state)
        names = self.cells[0].state_names
        expected = (len(self.cells), batch_size, self.hidden_size)
        if len(tensors) != len(names) or any(tuple(tensor.shape) != expected for tensor in tensors):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ValueError(f"state must hold {' and '.join(names)} of shape {expected} each, got {shapes}")
        return tensors

    def _check_input(self, sequence: Tensor) -> None:
        if sequence.ndim != 3 or sequence.shape[-1] != self.input_size or len(sequence) == 0:
            layout = "(batch, time, input_size)" if self.batch_first else "(time, batch, input_size)"
            shape = tuple(sequence.transpose(0, 1).shape if self.batch_first and sequence.ndim == 3 else sequence.shape)
            raise ValueError(
                f"input must be {layout} with at least one step and input_size={self.input_size}, got {shape}"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, dropout={self.dropout}, "
            f"bidirectional={self.bidirectional}, recurrent_dropout={self.recurrent_dropout}, backend={self.backend!r}"
        )


def _thinned(cell: Cell, probability: float) -> Cell:
    """`cell` with part of its recurrent weights zeroed and the others scaled up; its tensors are shared with it."""
    if "weight_hh" not in cell._parameters:
        raise ValueError(f"recurrent_dropout: weight_hh of this {type(cell).__name__} is no parameter of its own")
    weight = dropout(cell.weight_hh, probability)
    if dtype := autocast_dtype(weight.device.type):  # once: autocast remembers only what it cast of leaves
        weight = weight.to(dtype)
    # Past `Module`, which takes nothing but a leaf for a parameter: this one passes its gradient on to the cell's. And
    # not by `copy.copy`, which `torch.compile` can't trace.
    thinned: Cell = object.__new__(type(cell))
    thinned.__dict__ = {**cell.__dict__, "_parameters": {**cell._parameters, "weight_hh": weight}}
    thinned.__dict__["initial_state"] = cell.initial_state  # of the weights as they are
    return thinned


@cache  # says it once
def _warn_of_dropout(dropout: float) -> None:
    log.warning("dropout=%g acts between layers, and there is only one", dropout)


class RNN(Recurrent):
    """`Recurrent` around `RNNCell`: replaces `torch.nn.RNN` (tanh).

    Raises:
        ValueError: `nonlinearity`, which stands where `torch.nn.RNN` has it, is not `tanh`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        check_type("nonlinearity", nonlinearity, str)
        if nonlinearity != "tanh":
            raise ValueError(
                f"nonlinearity must be 'tanh', which RNNCell computes, got {nonlinearity!r}; for another one, write a "
                "Cell of your own and scan it with Recurrent"
            )
        super().__init__(RNNCell, input_size, hidden_size, num_layers, *args, **kwargs)


class GRU(Recurrent):
    """`Recurrent` around `GRUCell`; with `reset_after=True` it replaces `torch.nn.GRU`."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, reset_after: bool = False, **kwargs: Any) -> None:
        super().__init__(partial(GRUCell, reset_after=reset_after), input_size, hidden_size, *args, **kwargs)
        self.reset_after = reset_after


class LSTM(Recurrent):
    """`Recurrent` around `LSTMCell`: replaces `torch.nn.LSTM`."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(LSTMCell, input_size, hidden_size, *args, **kwargs)


class BiLSTM(LSTM):
    """An `LSTM` in both directions: `LSTM(…, bidirectional=True)`."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(input_size, hidden_size, *args, **{"bidirectional": True, **kwargs})
        if not self.bidirectional:
            raise ValueError("a BiLSTM is bidirectional; use LSTM for one direction")


_TWINS: dict[type[Recurrent], type[nn.RNNBase]] = {RNN: nn.RNN, GRU: nn.GRU, LSTM: nn.LSTM}
_CELLS: dict[type[Recurrent], type[Cell]] = {RNN: RNNCell, GRU: GRUCell, LSTM: LSTMCell}


def from_torch(module: nn.RNNBase, backend: str = "auto") -> Recurrent:
    """The layer that computes what `module` does, holding copies of its weights, frozen where those are.

    Args:
        module: a `torch.nn.RNN`, `GRU` or `LSTM`.
        backend: of the new layer.

    Raises:
        ValueError: it has no counterpart here (`nonlinearity="relu"`, `proj_size`, a `forward` of its own, weights that
            are computed).
    """
    layer_type = next((ours for ours, theirs in _TWINS.items() if isinstance(module, theirs)), None)
    if layer_type is None:
        raise ValueError(f"from_torch takes torch.nn.RNN, GRU or LSTM, got {type(module).__name__}")
    if type(module).forward is not _TWINS[layer_type].forward or "forward" in module.__dict__:
        raise ValueError(f"from_torch: {type(module).__name__} has a forward of its own, which has no counterpart")
    if getattr(module, "nonlinearity", "tanh") != "tanh":
        raise ValueError("from_torch: only nonlinearity='tanh' has a counterpart")
    if module.proj_size:
        raise ValueError("from_torch: proj_size has no counterpart")
    arguments = {**_arguments(module), "backend": backend}
    if layer_type is GRU:
        arguments["reset_after"] = True
    layer = layer_type(**arguments)
    _copy_weights(module, layer, to_layer=True)
    if has_hooks(module):
        raise ValueError(f"from_torch: this {type(module).__name__} has hooks, which have no counterpart")
    return layer.train(module.training)


def to_torch(layer: Recurrent) -> nn.RNNBase:
    """The `torch.nn` module that computes what `layer` does, holding copies of its weights, frozen where those are.

    Raises:
        ValueError: `torch.nn` has no counterpart: of a cell of your own, a GRU without `reset_after`,
            `recurrent_dropout`, or weights that are computed.
    """
    layer_type = next((ours for ours in _TWINS if isinstance(layer, ours)), None)
    if layer_type is None:
        raise ValueError(f"to_torch: torch.nn has no counterpart of {type(layer).__name__}")
    for cell in layer.cells:
        if not isinstance(cell, _CELLS[layer_type]) or any(
            getattr(type(cell), name) is not getattr(_CELLS[layer_type], name)
            for name in ("recur", "project", "step", "initial_state", "forward")
        ):
            raise ValueError(f"to_torch: torch.nn has no counterpart of {type(cell).__name__}")
    if isinstance(layer, GRU) and not all(cell.reset_after for cell in layer.cells):
        raise ValueError("to_torch: torch.nn.GRU is the form with reset_after=True, this GRU has reset_after=False")
    if layer.recurrent_dropout:
        raise ValueError("to_torch: torch.nn has no recurrent_dropout; set the layer's to 0 to leave it out")
    arguments = _arguments(layer)
    if layer.num_layers == 1:
        arguments["dropout"] = 0.0  # there is nothing between layers to drop; torch.nn warns about it
    module = _TWINS[layer_type](**arguments)
    _copy_weights(module, layer, to_layer=False)
    changed = any({"recur", "project", "step", "initial_state"} & cell.__dict__.keys() for cell in layer.cells)
    if changed or type(layer).forward is not Recurrent.forward or any(map(has_hooks, [layer, *layer.cells])):
        raise ValueError(
            f"to_torch: this {type(layer).__name__} or one of its cells has methods of its own or hooks, which have no "
            "counterpart"
        )
    module.flatten_parameters()
    return module.train(layer.training)


def _arguments(module: nn.RNNBase | Recurrent) -> dict[str, Any]:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    return {name: getattr(module, name) for name in names}


def _copy_weights(module: nn.RNNBase, layer: Recurrent, to_layer: bool) -> None:
    """Give one of the two copies of the other's parameters: values, types, devices, and what is frozen or shared."""
    copies: dict[int, Any] = {}
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
    for index, cell in enumerate(layer.cells):
        number, direction = divmod(index, layer.directions)
        suffix = f"_l{number}" + ("_reverse" if direction else "")
        for name in names:
            pair = (module, name + suffix), (cell, name)
            (source, source_name), (target, target_name) = pair if to_layer else reversed(pair)
            parameter = source._parameters.get(source_name)
            if parameter is None:
                raise ValueError(
                    f"{source_name} of this {type(source).__name__} is no parameter but computed, which a copy would "
                    "forget; make it one with torch.nn.utils.prune.remove, parametrize.remove_parametrizations, "
                    "remove_spectral_norm or remove_weight_norm"
                )
            setattr(target, target_name, copy.deepcopy(parameter, copies))
