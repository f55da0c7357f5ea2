"""What each token of a text adds to a class: integrated gradients, and the shares of n-gram votes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.classification import ClassificationTask
from tasks.models import SequenceModel, TokenEmbedding
from tasks.task import Batch

STEPS, MOST_STEPS = 32, 512  # of the path; doubled until the sum is right
TOLERANCE = 0.01


@dataclass(frozen=True)
class Attribution:
    """Of one text and one class; `tokens.sum() + characters.sum()` is `logit - baseline`, but for a hundredth.

    Attributes:
        tokens: what each token adds to the logit (T,).
        characters: what each character adds, by the votes of n-grams of characters (C,).
        logit: of the class.
        baseline: the logit of as many tokens that mean nothing, without votes.
    """

    tokens: np.ndarray
    characters: np.ndarray
    logit: float
    baseline: float


def explains(task: object) -> bool:
    """Whether there is an embedding to go back to."""
    model = task.model if isinstance(task, ClassificationTask) else None
    return isinstance(model, SequenceModel) and isinstance(model.inputs, TokenEmbedding)


def attribute(task: ClassificationTask, batch: Batch, target: int) -> Attribution:
    """Explain the logit of class `target` for a batch of one text.

    Integrated gradients (Sundararajan et al. 2017): with e the text's token vectors, token t adds
    e_t . (mean over a in (0, 1) of the logit's gradient at a e, for e_t), so that all of them together add what the
    logit differs by between e and zero vectors. The path has as many steps as this sum needs to be right within a
    hundredth, 512 at most. A vote of an n-gram is shared evenly by its words or characters, which is exact.
    """
    from captum.attr import LayerIntegratedGradients

    words, lengths = batch["inputs"], batch["lengths"]

    def gradients(member: Any, steps: int) -> Tensor:
        def logit(inputs: Tensor, lengths: Tensor) -> Tensor:
            return member(inputs, lengths)[:, target]

        method: Any = LayerIntegratedGradients(logit, member.inputs)
        found = method.attribute(words, nothing, additional_forward_args=(lengths,), n_steps=steps)
        return found.detach().sum(dim=-1)[0].double()

    nothing = torch.zeros_like(words)  # padding, whose vector is zero
    with torch.no_grad():
        ends = (task.of_members(inputs, lengths).mean(dim=0) for inputs in (words, nothing))
        reached, baseline = (logits[0, target].item() for logits in ends)
    steps = STEPS
    while True:
        tokens = torch.stack([gradients(member, steps) for member in task.members]).mean(dim=0)
        missed = abs(tokens.sum().item() - (reached - baseline))
        if missed <= TOLERANCE * max(1.0, abs(reached - baseline)) or steps >= MOST_STEPS:
            break
        steps *= 2
    characters = torch.zeros(batch["characters"].shape[1], dtype=torch.float64)
    if task.votes is not None:
        with torch.no_grad():
            each = [votes.shares(batch["characters"], words) for votes in (task.votes, *task.other_votes)]  # pyright: ignore
        characters, of_words = (
            torch.stack([share[0, :, target] for share in of_kind]).mean(dim=0).double()
            for of_kind in zip(*each, strict=True)
        )
        tokens = tokens + of_words
        reached += (characters.sum() + of_words.sum()).item()
    return Attribution(tokens.numpy(), characters.numpy(), reached, baseline)
