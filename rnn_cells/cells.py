"""Recurrent cells: the equations, one time step each.

Legend: B batch, I input_size, H hidden_size, G number of gate blocks. Equations use row vectors, so that `x W` is
`x @ W`; the parameters hold the transposed matrices, stacked gate by gate in the order and under the names of
`torch.nn`'s cells (`weight_ih` is `(G*H, I)`, `weight_hh` is `(G*H, H)`), which makes conversion a copy. Each bias of
an equation is the sum of an input and a recurrent part (`bias_ih + bias_hh`), as there.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

State = tuple[Tensor, ...]
"""The state between two steps: tensors of shape (B, H); the first one is the cell's output."""


def check_type(name: str, value: object, kind: type) -> None:
    """Raise a TypeError unless `value` is of this kind; True and False are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {bool: "True or False", Integral: "an integer", Real: "a number", str: "a string"}[kind]
        raise TypeError(f"{name} must be {expected}, got {value!r}; is each argument in its place?")


class Cell(nn.Module):
    """One time step of a recurrent network.

    A step is split in two. `project` does everything that doesn't depend on the past, so that a layer can do it for
    all steps in a single matrix product; `recur` does the sequential rest. A new cell states `num_gates`, the names of
    its state's tensors, and `recur`; it then works in every layer, direction and task.

    Args:
        input_size: I, features of a step's input.
        hidden_size: H, features of a step's output.
        bias: whether the equations have their bias terms.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a size is below 1.
    """

    num_gates: ClassVar[int]
    state_names: ClassVar[tuple[str, ...]] = ("h",)

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        check_type("input_size", input_size, Integral)
        check_type("hidden_size", hidden_size, Integral)
        check_type("bias", bias, bool)
        if input_size < 1 or hidden_size < 1:
            raise ValueError(f"input_size and hidden_size must be at least 1, got {input_size} and {hidden_size}")
        if not hasattr(self, "num_gates"):
            raise TypeError(f"{type(self).__name__} must say its num_gates: how many blocks of weights it has")
        self.input_size, self.hidden_size = input_size, hidden_size
        rows = self.num_gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(rows)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(rows)) if bias else None
        self.reset_parameters()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step: input (B, I) and state to output (B, H) and the next state."""
        return self.step(self.project(x), self.initial_state(len(x)) if state is None else state)

    def step(self, gates: Tensor, state: State) -> tuple[Tensor, State]:
        """`recur`, and the output in front of what it returns."""
        state = self.recur(gates, state)
        if not isinstance(state, tuple):
            raise TypeError(f"{type(self).__name__}.recur must return the new state as a tuple, such as (h,)")
        return state[0], state

    def project(self, x: Tensor) -> Tensor:
        """The input's part of all gates, `x W + b_ih`: (..., I) to (..., G*H)."""
        return linear(x, self.weight_ih, self.bias_ih)

    def recur(self, gates: Tensor, state: State) -> State:
        """The next state from the projected input (B, G*H) and the state before it."""
        raise NotImplementedError(f"{type(self).__name__} must define recur(gates, state)")

    def initial_state(self, batch_size: int) -> State:
        """Zeros, on the weights' device and in their dtype."""
        # A parameter: `weight_hh` itself may be computed from one, and not be where that is yet.
        return next(self.parameters()).new_zeros(len(self.state_names), batch_size, self.hidden_size).unbind()

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw new matrices and biases; what else a cell learns stays as its constructor has made it.

        Args:
            init: `torch` draws all of them from U(-1/sqrt(H), 1/sqrt(H)), as `torch.nn` does. `orthogonal` makes every
                gate's recurrent matrix orthogonal (it keeps the norm of what flows through time: Saxe et al. 2014),
                the input matrices Xavier-uniform and the biases zero.

        Raises:
            ValueError: `init` is neither, or a weight is computed from others (pruned or parametrized).
        """
        if init == "torch":
            bound = 1 / math.sqrt(self.hidden_size)
            for parameter in self._own():
                nn.init.uniform_(parameter, -bound, bound)
        elif init == "orthogonal":
            biases = self._own()[2:]
            for block in self.weight_hh.detach().split(self.hidden_size):
                nn.init.orthogonal_(block)
            for block in self.weight_ih.detach().split(self.hidden_size):
                nn.init.xavier_uniform_(block)
            for bias in biases:
                nn.init.zeros_(bias)
        else:
            raise ValueError(f"init must be 'torch' or 'orthogonal', got {init!r}")

    def _own(self) -> list[nn.Parameter]:
        """The matrices, and the biases if there are any; what a subclass adds, it draws itself."""
        both = {name: getattr(self, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        for name, tensor in both.items():
            if not (tensor is None or isinstance(tensor, nn.Parameter)):
                raise ValueError(f"{name} of this {type(self).__name__} is computed from others: draw those instead")
        return [parameter for parameter in both.values() if parameter is not None]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias_ih is not None}"


class RNNCell(Cell):
    """The simple recurrent cell (Elman 1990).

    h = tanh(x W + h U + b)
    """

    num_gates = 1

    def recur(self, gates: Tensor, state: State) -> State:
        (h,) = state
        return (torch.tanh(gates + linear(h, self.weight_hh, self.bias_hh)),)


class GRUCell(Cell):
    """The gated recurrent unit (Cho et al. 2014).

    r = sigmoid(x W_r + h U_r + b_r)             reset: how much of the past the candidate sees
    z = sigmoid(x W_z + h U_z + b_z)             update: how much of the past is kept
    n = tanh(x W_n + (r * h) U_n + b_n)          candidate
    h = z * h + (1 - z) * n

    With `reset_after=True` the reset gate acts after the matrix product, which needs one product per step instead of
    two; it is the form of `torch.nn.GRU` and of cuDNN:

    n = tanh(x W_n + b_n + r * (h U_n + c_n))

    Args:
        input_size: I, features of a step's input.
        hidden_size: H, features of a step's output.
        bias: whether the equations have their bias terms.
        reset_after: the second form of the candidate.
    """

    num_gates = 3

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, reset_after: bool = False) -> None:
        super().__init__(input_size, hidden_size, bias)
        check_type("reset_after", reset_after, bool)
        self.reset_after = reset_after

    def recur(self, gates: Tensor, state: State) -> State:
        (h,) = state
        H = self.hidden_size
        x_rz, x_n = gates.split([2 * H, H], dim=-1)
        if self.reset_after:
            h_rz, h_n = linear(h, self.weight_hh, self.bias_hh).split([2 * H, H], dim=-1)
            r, z = torch.sigmoid(x_rz + h_rz).chunk(2, dim=-1)
            n = torch.tanh(x_n + r * h_n)
        else:
            U_rz, U_n = self.weight_hh.split([2 * H, H])
            b_rz, b_n = (None, None) if self.bias_hh is None else self.bias_hh.split([2 * H, H])
            r, z = torch.sigmoid(x_rz + linear(h, U_rz, b_rz)).chunk(2, dim=-1)
            n = torch.tanh(x_n + linear(r * h, U_n, b_n))
        return (z * h + (1 - z) * n,)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reset_after={self.reset_after}"


class LSTMCell(Cell):
    """The long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).

    i = sigmoid(x W_i + h U_i + b_i)             input gate
    f = sigmoid(x W_f + h U_f + b_f)             forget gate
    g = tanh(x W_g + h U_g + b_g)                candidate
    o = sigmoid(x W_o + h U_o + b_o)             output gate
    c = f * c + i * g
    h = o * tanh(c)
    """

    num_gates = 4
    state_names = ("h", "c")

    def recur(self, gates: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = (gates + linear(h, self.weight_hh, self.bias_hh)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw new weights; `orthogonal` also sets the forget gate's bias to 1, so that the memory starts out open.

        Source: Jozefowicz et al. 2015.
        """
        super().reset_parameters(init)
        if init == "orthogonal" and self.bias_ih is not None:
            nn.init.ones_(self.bias_ih.detach()[self.hidden_size : 2 * self.hidden_size])
