"""Random layers against `torch.nn`'s, used in random ways: what comes out is the same, or refused."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from rnn_cells import from_torch

TWINS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
WAYS = ["plain", "frozen", "optimizer", "retain_graph", "threads", "shared_graph", "checkpoint", "reentrant"]
WAYS += ["save_on_cpu", "trace", "make_fx", "hooks", "pruned", "modes", "autocast", "no_grad", "inference", "vmap"]
traces = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def run_packed(module, x, state, lengths):
    """Outputs and final states of torch's module; with lengths, which must be positive, of a packed batch."""
    if lengths is None:
        output, final = module(x, state)
    else:
        first = module.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
        output, final = module(packed, state)
        output, _ = pad_packed_sequence(output, batch_first=first, total_length=x.shape[1 if first else 0])
    return output, *(final if isinstance(final, tuple) else (final,))


def run_ours(layer, x, state, lengths):
    output, final = layer(x, state, lengths)
    return output, *(final if isinstance(final, tuple) else (final,))


class Case:
    """A layer of torch's, ours with the same weights, and a batch."""

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        torch.manual_seed(seed)
        self.way = WAYS[seed % len(WAYS)]
        self.dtype = torch.float32 if self.way == "autocast" else dice.choice([torch.float64, torch.float32])
        kind = TWINS[dice.choice(list(TWINS))]
        inputs, hidden = dice.choice([1, 2, 5, 19, 40]), dice.choice([1, 3, 8, 17, 33])
        options = {"num_layers": dice.choice([1, 1, 2, 3]), "bias": dice.random() < 0.7}
        options |= {"bidirectional": dice.random() < 0.4, "batch_first": dice.random() < 0.5}
        self.module = kind(inputs, hidden, **options).to(self.dtype)
        steps, batch = dice.choice([1, 2, 5, 9]), dice.choice([1, 2, 3, 7])
        wide = torch.randn(batch, steps, 2 * inputs, dtype=self.dtype)
        x = wide[..., ::2] if dice.random() < 0.3 else wide[..., :inputs].clone()
        self.x = x if options["batch_first"] else x.transpose(0, 1)
        self.lengths = torch.randint(1, steps + 1, (batch,)) if dice.random() < 0.5 else None
        cells = options["num_layers"] * (1 + options["bidirectional"])
        state = [torch.randn(cells, batch, hidden, dtype=self.dtype) for _ in range(1 + (kind is nn.LSTM))]
        self.state = state if dice.random() < 0.5 else None
        if self.way == "frozen":
            for parameter in self.module.parameters():
                parameter.requires_grad_(dice.random() < 0.5)
        self.layer = from_torch(self.module)
        self.tolerance = 1e-9 if self.dtype == torch.float64 else 2e-4
        self.weights: list[torch.Tensor] = []

    def run(self, side: str, leaves=None):
        """Outputs and final states of `ours` or of torch."""
        x, state = leaves or self.leaves()
        state = None if state is None else tuple(state) if len(state) > 1 else state[0]
        function, model = (run_ours, self.layer) if side == "ours" else (run_packed, self.module)
        return function(model, x, state, self.lengths)

    def leaves(self):
        x, *state = (tensor.detach().clone().requires_grad_() for tensor in (self.x, *(self.state or ())))
        return x, state or None

    def loss(self, results):
        """A fixed random function of all results."""
        dice = torch.Generator().manual_seed(1)
        parts = [(r.double() * torch.randn(r.shape, generator=dice, dtype=torch.float64)).sum() for r in results]
        return torch.stack(parts).sum()

    def learning(self, side: str):
        """The parameters that learn, in the order of torch's names."""
        model = self.layer if side == "ours" else self.module
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def assert_same(self, ours, theirs, tolerance=None):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.shape == other.shape
            scale = max(1.0, other.abs().max().item() if other.numel() else 1.0)
            error = (mine.double() - other.double()).abs().max().item() if other.numel() else 0.0
            assert error <= (tolerance or self.tolerance) * scale, (self.way, self.layer, error)

    def everything(self, side: str, forward=None):
        """Results and gradients by the input, the state and what learns."""
        x, state = self.leaves()
        results = (forward or self.run)(side, (x, state))
        found = torch.autograd.grad(self.loss(results), [x, *(state or ()), *self.learning(side)])
        if side == "ours":
            assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == len(found)
        return [*results, *found]


def check(case: Case) -> None:
    """Use a case in its way."""
    way, layer = case.way, case.layer
    plain = case.everything("torch")
    if way in ("plain", "frozen"):
        case.assert_same(case.everything("ours"), plain)
    elif way == "optimizer":
        for side in ("ours", "torch"):
            optimizer = torch.optim.SGD(case.learning(side), lr=0.01, foreach=True)
            for _ in range(3):
                optimizer.zero_grad()
                case.loss(case.run(side)).backward()
                optimizer.step()
        case.assert_same(case.learning("ours"), case.learning("torch"))
        output = case.loss(case.run("ours"))
        optimizer = torch.optim.SGD(case.learning("ours"), lr=0.01)
        output.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward()
    elif way == "retain_graph":
        x, state = case.leaves()
        leaves = [x, *(state or ()), *case.learning("ours")]
        loss = case.loss(case.run("ours", (x, state)))
        for _ in range(2):
            found = torch.autograd.grad(loss, leaves, retain_graph=True)
            case.assert_same(found, plain[-len(found) :])
            for gradient in found:
                gradient.mul_(0.5)
    elif way in ("threads", "shared_graph"):
        shared = case.loss(case.run("ours"))
        wanted = torch.autograd.grad(case.loss(case.run("torch")), case.learning("torch"))
        gradients: list = []

        def work():
            loss = shared if way == "shared_graph" else case.loss(case.run("ours"))
            gradients.append(torch.autograd.grad(loss, case.learning("ours"), retain_graph=True))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(gradients) == 3
        for each in gradients:
            case.assert_same(each, wanted)
    elif way in ("checkpoint", "reentrant"):

        def forward(side, leaves):
            def again(x, *state):
                return case.run(side, (x, list(state) or None))

            return checkpoint(again, leaves[0], *(leaves[1] or ()), use_reentrant=way == "reentrant")

        if way == "checkpoint":
            case.assert_same(case.everything("ours", forward), plain)
        else:  # it takes backward() alone
            x, state = case.leaves()
            results = forward("ours", (x, state))
            case.loss(results).backward()
            leaves = [x, *(state or ()), *case.learning("ours")]
            case.assert_same([*results, *(leaf.grad for leaf in leaves)], plain)
    elif way == "save_on_cpu":
        with save_on_cpu():
            case.assert_same(case.everything("ours"), plain)
    elif way in ("trace", "make_fx"):
        layer.requires_grad_(False)  # a trace takes no other constants
        x, state = case.leaves()
        inputs = [x.detach(), *(tensor.detach() for tensor in state or ())]

        def function(x, *state):
            return case.run("ours", (x, list(state) or None))

        if way == "trace":
            graph: Any = torch.jit.trace(function, [torch.randn_like(tensor) for tensor in inputs], check_trace=False)
        else:
            from torch.fx.experimental.proxy_tensor import make_fx

            graph = make_fx(function)(*[torch.randn_like(tensor) for tensor in inputs])
        with torch.no_grad():
            results = graph(*inputs)
        case.assert_same(results, plain[: len(results)])
    elif way == "hooks":
        seen = []
        for cell in layer.cells:
            cell.register_forward_hook(lambda cell, inputs, result: seen.append(cell))
        case.assert_same(case.everything("ours"), plain)
        assert set(seen) == set(layer.cells)
    elif way == "pruned":
        for name in [name for name, _ in case.module.named_parameters() if name.startswith("weight_hh")]:
            parameter = case.module.get_parameter(name)
            mask = (torch.rand_like(parameter) < 0.5).to(parameter)
            parts = name.split("_l")[1].split("_")
            cell = layer.cells[int(parts[0]) * layer.directions + len(parts) - 1]
            prune.custom_from_mask(cell, "weight_hh", mask)
            parameter.data.mul_(mask)
        results, wanted = case.run("ours"), case.run("torch")
        case.assert_same(results, wanted)
    elif way == "modes":
        with FlopCounterMode(display=False) as ours:
            results = case.run("ours")
        case.assert_same(results, plain[: len(results)])
        assert ours.get_total_flops() > 0
    elif way == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            results = case.run("ours")
        case.assert_same(results, plain[: len(results)], 0.1)
    elif way in ("no_grad", "inference"):
        with torch.no_grad() if way == "no_grad" else torch.inference_mode():
            results = case.run("ours")
        case.assert_same(results, plain[: len(results)])
    elif way == "vmap":
        if case.lengths is not None:
            case.lengths = None
            plain = case.everything("torch")
        x, state = case.leaves()
        layer.backend = "auto"
        results = torch.func.vmap(lambda x: case.run("ours", (x, state)))(torch.stack([x, x]).detach())
        case.assert_same([result[1] for result in results], plain[: len(results)])


@traces
@pytest.mark.parametrize("seed", range(54))
def test_a_random_layer_matches_torch(seed):
    check(Case(seed))


@traces
@pytest.mark.exhaustive
@pytest.mark.parametrize("block", range(20))
def test_two_thousand_random_layers_match_torch(block):
    for seed in range(100 * block, 100 * (block + 1)):
        try:
            check(Case(seed))
        except BaseException as error:
            raise AssertionError(f"Case({seed})") from error
