"""The network around a recurrent encoder: inputs -> encoder -> pooling over time -> head.

Legend: B batch, T time, E features per step, F features of the encoder's output, O outputs of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class SequenceModel(nn.Module):
    """Reads a batch of sequences and answers with one vector each.

    Args:
        inputs: turns a batch's inputs into (B, T, E).
        encoder: called as `encoder(x, lengths=lengths)`, returns outputs (B, T, F) and a final state in the layout
            of `torch.nn`; has `output_size` F.
        outputs: O, size of the answer.
        pooling: how the steps become one vector; see `Pooling`.
        dropout: on the pooled vector, in training.
    """

    def __init__(
        self, inputs: nn.Module, encoder: Any, outputs: int, pooling: str = "last", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.encoder = encoder
        self.pooling = Pooling(pooling, encoder.output_size)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(self.pooling.output_size, outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Inputs (B, T) or (B, T, E), with B valid lengths, to answers (B, O)."""
        outputs, state = self.encoder(self.inputs(x), lengths=lengths)
        final = state if isinstance(state, Tensor) else state[0]  # (L*D, B, H)
        return self.head(self.dropout(self.pooling(outputs, final, lengths)))


def build_model(
    inputs: Callable[..., nn.Module] | None,
    encoder: Callable[..., nn.Module] | None,
    outputs: int,
    pooling: str,
    dropout: float,
    **facts: Any,
) -> SequenceModel:
    """A `SequenceModel` from the factories of its parts, and what of the data's facts the inputs need.

    Raises:
        ValueError: one of them is missing.
    """
    if inputs is None or encoder is None:
        raise ValueError("a task needs inputs and an encoder, or a baseline in their place")
    read: Any = inputs(**facts)
    return SequenceModel(read, encoder(input_size=read.output_size), outputs, pooling, dropout)


class TokenEmbedding(nn.Embedding):
    """Token numbers (B, T) to vectors (B, T, E); the padding token's is zero.

    Args:
        vocab_size: number of tokens.
        embedding_dim: E.
        padding_index: the token that fills up short sequences.
        unknown_index: the token of all words that are not in the vocabulary.
        dropout: probability with which a feature of a vector is zeroed, in training.
        token_dropout: probability with which a token is taken for unknown, in training (Iyyer et al. 2015).
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        padding_index: int = 0,
        unknown_index: int = 1,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
    ) -> None:
        super().__init__(vocab_size, embedding_dim, padding_idx=padding_index)
        self.output_size = embedding_dim
        self.unknown_index, self.token_dropout = unknown_index, token_dropout
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, E)."""
        if self.training and self.token_dropout:
            hidden = torch.rand(tokens.shape, device=tokens.device) < self.token_dropout
            tokens = tokens.masked_fill(hidden & (tokens != self.padding_idx), self.unknown_index)
        return self.dropout(super().forward(tokens))


class Dropout(nn.Dropout):
    """`nn.Dropout`, four times as fast on a CPU: there four features share one 64-bit random number.

    Each is zeroed if its 16 bits, as a number, are less than 2^16 p, with p rounded to a multiple of 2^-16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        zeroed = round(2**16 * self.p)
        if not self.training or x.device.type != "cpu" or zeroed in (0, 2**16):
            return super().forward(x)
        bits = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].view(x.shape) >= zeroed - 2**15  # an int16 begins at -2^15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - zeroed))


class Identity(nn.Identity):
    """Features that are numbers already, (B, T, E), pass as they are."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.output_size = num_features


class Mean(nn.Module):
    """No recurrence: each step's output is the mean of all valid inputs (B, T, E), whatever the pooling.

    Args:
        input_size: E.
    """

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.output_size = input_size

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (B, T, E) and, as the final state, their last (1, B, E)."""
        if lengths is None:
            lengths = torch.full(x.shape[:1], x.shape[1], device=x.device)
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        mean = (x * valid.unsqueeze(-1)).sum(dim=1) / lengths.clamp(min=1)[:, None]
        return mean[:, None].expand_as(x), mean[None]


class Pooling(nn.Module):
    """One vector from the outputs of all valid steps (B, T, F); zeros for a sequence without any.

    Args:
        kind: `last` is the final state of the top layer: the last step's output, and from the backward direction the
            first step's. `mean` and `max` go over the valid steps, `max_mean` is both, one behind the other (2F).
            `attention` is a mean whose weights are learned: softmax over t of v . tanh(W h_t + b) (Bahdanau et al.
            2015; Yang et al. 2016).
        features: F; `output_size` is the size of the answer.

    Raises:
        ValueError: `kind` is none of these.
    """

    KINDS = ("last", "mean", "max", "max_mean", "attention")

    def __init__(self, kind: str, features: int) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"pooling must be one of {', '.join(self.KINDS)}; got {kind!r}")
        self.kind, self.features = kind, features
        self.output_size = 2 * features if kind == "max_mean" else features
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(features, features), nn.Tanh(), nn.Linear(features, 1, bias=False))

    def forward(self, outputs: Tensor, final: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Outputs (B, T, F), final hidden states (L*D, B, H) with F = D*H, lengths (B,): to (B, output_size)."""
        if self.kind == "last":
            directions = self.features // final.shape[-1]
            return torch.cat(final[-directions:].unbind(), dim=-1)
        if lengths is None:
            lengths = torch.full(outputs.shape[:1], outputs.shape[1], device=outputs.device)
        times = torch.arange(outputs.shape[1], device=outputs.device)
        valid = (times < lengths[:, None]).unsqueeze(-1)  # (B, T, 1)
        some = (lengths > 0)[:, None]  # (B, 1)
        if self.kind in ("max", "mean", "max_mean"):
            pooled = []
            if "max" in self.kind:
                pooled.append(torch.where(some, outputs.masked_fill(~valid, -torch.inf).amax(dim=1), 0))
            if "mean" in self.kind:
                pooled.append((outputs * valid).sum(dim=1) / lengths.clamp(min=1)[:, None])
            return torch.cat(pooled, dim=-1)
        # The lowest finite number, not -inf: a sequence without a valid step then has finite weights and gradients.
        scores = self.score(outputs)
        scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
        return (scores.softmax(dim=1) * valid * outputs).sum(dim=1)

    def extra_repr(self) -> str:
        return self.kind
