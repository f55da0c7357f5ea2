"""Compile the triton kernels of one kind of cell for a GPU that needn't be there, by `test_triton.py`.

The interpreter is lenient: only the compiler sees that a variable changes its type from one turn of a loop to the next.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rnn_cells import GRUCell, LSTMCell, RNNCell
from rnn_cells.backends import kernels
from rnn_cells.backends import triton as backend

CELLS = {"RNN": RNNCell, "GRU": GRUCell, "GRU_reset_after": partial(GRUCell, reset_after=True), "LSTM": LSTMCell}
TYPES = {
    **{torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"},
    **{torch.int32: "*i32", torch.int64: "*i64"},
}


class Compiler:
    """Takes a kernel's place: what would be launched is compiled."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.seen = kernel, set()

    def __getitem__(self, grid: Any) -> Any:
        return self.compile

    def compile(self, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in ("num_warps", "num_stages")}
        arguments["MEET"] = arguments["SPLIT"] > 1  # as on a GPU
        signature, constants = {}, {}
        for name in self.kernel.arg_names:
            value = arguments[name]
            if isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
            elif value is None or name.isupper():
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32"
        key = (*signature.items(), *constants.items())
        if key not in self.seen:
            self.seen.add(key)
            source = ASTSource(self.kernel, signature, constexprs=constants)
            triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def main(name: str) -> None:
    kernels.forward, kernels.backward = forward, backward = Compiler(kernels.forward), Compiler(kernels.backward)
    lengths = torch.tensor([2, 1])
    cell = CELLS[name](3, 20)
    output, _ = backend.scan_layer([cell, cell], torch.randn(2, 2, 3))  # without an initial state
    output.sum().backward()
    for dtype, (hidden, ragged), used in product((torch.float32, torch.bfloat16), ((40, False), (70, True)), (0, 1)):
        cell = CELLS[name](3, hidden)
        x = torch.randn(2, 2, 3)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output, final = backend.scan(cell, x, cell.initial_state(2), lengths if ragged else None)
        (output, final[0])[used].float().sum().backward()
    print(f"{name}: {len(forward.seen)} times forward, {len(backward.seen)} times backward")


if __name__ == "__main__":
    main(sys.argv[1])
