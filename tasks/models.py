"""The network around a recurrent encoder: inputs -> encoder -> pooling over time -> head.

Legend: B batch, T time, E features per step, F features of the encoder's output, O outputs of the head.
"""

from __future__ import annotations

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
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.output_size, outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Inputs (B, T) or (B, T, E), with B valid lengths, to answers (B, O)."""
        outputs, state = self.encoder(self.inputs(x), lengths=lengths)
        final = state if isinstance(state, Tensor) else state[0]  # (L*D, B, H)
        return self.head(self.dropout(self.pooling(outputs, final, lengths)))


class TokenEmbedding(nn.Embedding):
    """Token numbers (B, T) to vectors (B, T, E); the padding token's is zero.

    Args:
        vocab_size: number of tokens.
        embedding_dim: E.
        padding_index: the token that fills up short sequences.
        dropout: probability with which a feature of a vector is zeroed, in training.
    """

    def __init__(self, vocab_size: int, embedding_dim: int, padding_index: int = 0, dropout: float = 0.0) -> None:
        super().__init__(vocab_size, embedding_dim, padding_idx=padding_index)
        self.output_size = embedding_dim
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, E)."""
        return self.dropout(super().forward(tokens))


class Identity(nn.Identity):
    """Features that are numbers already, (B, T, E), pass as they are."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.output_size = num_features


class Pooling(nn.Module):
    """One vector (B, F) from the outputs of all valid steps (B, T, F); zeros for a sequence without any.

    Args:
        kind: `last` is the final state of the top layer: the last step's output, and from the backward direction the
            first step's. `mean` and `max` go over the valid steps. `attention` is a mean whose weights are learned:
            softmax over t of v . tanh(W h_t + b) (Bahdanau et al. 2015; Yang et al. 2016).
        features: F.

    Raises:
        ValueError: `kind` is none of these.
    """

    KINDS = ("last", "mean", "max", "attention")

    def __init__(self, kind: str, features: int) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"pooling must be one of {', '.join(self.KINDS)}; got {kind!r}")
        self.kind, self.features = kind, features
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(features, features), nn.Tanh(), nn.Linear(features, 1, bias=False))

    def forward(self, outputs: Tensor, final: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Outputs (B, T, F), final hidden states (L*D, B, H) with F = D*H, lengths (B,): to (B, F)."""
        if self.kind == "last":
            directions = self.features // final.shape[-1]
            return torch.cat(final[-directions:].unbind(), dim=-1)
        if lengths is None:
            lengths = torch.full(outputs.shape[:1], outputs.shape[1], device=outputs.device)
        times = torch.arange(outputs.shape[1], device=outputs.device)
        valid = (times < lengths[:, None]).unsqueeze(-1)  # (B, T, 1)
        some = (lengths > 0)[:, None]  # (B, 1)
        if self.kind == "max":
            return torch.where(some, outputs.masked_fill(~valid, -torch.inf).amax(dim=1), 0)
        if self.kind == "mean":
            return (outputs * valid).sum(dim=1) / lengths.clamp(min=1)[:, None]
        # The lowest finite number, not -inf: a sequence without a valid step then has finite weights and gradients.
        scores = self.score(outputs).masked_fill(~valid, torch.finfo(outputs.dtype).min)
        return (scores.softmax(dim=1) * valid * outputs).sum(dim=1)

    def extra_repr(self) -> str:
        return self.kind
