"""Which words of a text decided: coloured on the console and in a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.text import Text

from datamodules.corpus import UNKNOWN
from datamodules.encoding import TextEncoder
from runs.checkpoints import write_atomically
from runs.schema import ConfigError
from tasks.attribution import attribute, explains

FOR, AGAINST = (0, 114, 178), (213, 94, 0)  # Okabe and Ito 2008
STRONGEST = 0.6  # opacity: the text stays readable on light and on dark
LISTED = 6  # words that are named with their numbers on the console


@dataclass(frozen=True)
class Example:
    """A text, the line of the file that it is from, and its prediction."""

    line: int
    text: str
    prediction: str
    probability: float


@dataclass(frozen=True)
class Explained:
    """An example cut into pieces, its tokens and what is between them, and what each adds to the class's logit."""

    example: Example
    pieces: list[tuple[str, float, bool]]  # text, value, whether the token is known
    logit: float
    baseline: float

    @property
    def strongest(self) -> float:
        return max((abs(value) for _, value, _ in self.pieces), default=0) or 1.0


def check(task: Any) -> None:
    """Raise a ConfigError unless the task's answers can be explained here."""
    if not explains(task):
        name = task.blueprint["config"]["model"]["name"]
        raise ConfigError(f"explain=true needs a network that embeds words; model={name} has no embedding")
    if find_spec("captum") is None:
        raise ConfigError('explain=true needs the package captum: pip install "rnn-lab[explain]"')


def explained(task: Any, encoder: TextEncoder, example: Example) -> Explained:
    """What each piece of the text adds to the class that is predicted; see `tasks.attribution.attribute`."""
    batch = encoder([example.text]).dataset[[0]]
    found = attribute(task, batch, task.classes.index(example.prediction))
    values = [*found.characters, *[0.0] * (len(example.text) - len(found.characters))]
    known = (batch["inputs"][0] != UNKNOWN).tolist()
    pieces = []
    end = 0
    for number, token in enumerate(encoder.tokens(example.text)[: encoder.max_length]):
        start = example.text.index(token, end)
        if start > end:
            pieces.append((example.text[end:start], sum(values[end:start]), True))
        end = start + len(token)
        pieces.append((token, found.tokens[number] + sum(values[start:end]), known[number]))
    if end < len(example.text):
        pieces.append((example.text[end:], sum(values[end:]), True))
    return Explained(example, pieces, found.logit, found.baseline)


def coloured(explained: Explained) -> Text:
    """The text for a terminal: blue speaks for the class, orange against it; and its strongest words with numbers."""
    shown = Text()
    for piece, value, _ in explained.pieces:
        share = abs(value) / explained.strongest
        red, green, blue = (round(255 - (255 - part) * share) for part in (FOR if value > 0 else AGAINST))
        style = f"black on rgb({red},{green},{blue})" if share > 0.05 else ""  # too faint to see
        shown.append(piece, style)
    total = explained.logit - explained.baseline
    shown.append(
        f"\n\nblue: for {explained.example.prediction}, orange: against; all together {total:+.2f}, from a logit of "
        f"{explained.baseline:.2f} without words to {explained.logit:.2f}",
        "dim",
    )
    words = sorted((piece for piece in explained.pieces if piece[0].strip()), key=lambda piece: -abs(piece[1]))
    if words:
        shown.append("\nstrongest: " + ", ".join(f"{word} {value:+.2f}" for word, value, _ in words[:LISTED]), "dim")
    return shown


def write_page(task: Any, encoder: TextEncoder, examples: Sequence[Example], path: Path, run: str) -> None:
    """Write a page that needs nothing else: a block for each example."""
    blocks = [_block(explained(task, encoder, one)) for one in track(examples, "explaining", transient=True)]
    write_atomically(path, PAGE.format(run=html.escape(run), blocks="\n".join(blocks)).encode())


def _block(explained: Explained) -> str:
    example = explained.example
    head = (
        f"<b>{html.escape(example.prediction)}</b> <span class=p>{example.probability:.1%}</span>"
        f"<span class=where>line {example.line} · logit {explained.baseline:+.2f} without words, "
        f"{explained.logit:+.2f} with them</span>"
    )
    return f"<article lang=zh><header>{head}</header><p>{''.join(_spans(explained))}</p></article>"


def _spans(explained: Explained) -> Iterator[str]:
    for piece, value, known in explained.pieces:
        opacity = STRONGEST * abs(value) / explained.strongest
        red, green, blue = FOR if value > 0 else AGAINST
        colour = f' style="background:rgba({red},{green},{blue},{opacity:.2f})"' if opacity >= 0.005 else ""
        title = f"{value:+.3f}" + ("" if known else ", not in the vocabulary")
        yield f'<span title="{title}"{"" if known else " class=new"}{colour}>{html.escape(piece)}</span>'


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What decided: {run}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1b1b1b; --faint: #666; --paper: #fff; --card: #f6f6f4; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e8e8e8; --faint: #a0a0a0; --paper: #161616; --card: #222; }} }}
body {{ background: var(--paper); color: var(--ink); font: 17px/1.9 system-ui, "Noto Sans CJK SC", "Microsoft YaHei",
  "PingFang SC", sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; margin: 0; }}
.about, .where {{ color: var(--faint); font-size: .85rem; line-height: 1.5; }}
.legend {{ display: flex; gap: .7rem; align-items: center; font-size: .85rem; margin: .8rem 0 1.2rem; }}
.legend i {{ flex: 0 1 18rem; height: .9rem; border-radius: 3px;
  background: linear-gradient(90deg, rgba(213,94,0,.6), rgba(213,94,0,0) 50%,
  rgba(0,114,178,0) 50%, rgba(0,114,178,.6)); }}
article {{ background: var(--card); border-radius: 8px; padding: .7rem 1rem; margin: 0 0 .9rem; }}
article p {{ margin: .3rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
article span[title] {{ border-radius: 3px; padding: .1em 0; }}
article span[title]:hover {{ outline: 1px solid var(--faint); }}
.new {{ border-bottom: 1px dotted var(--faint); }}
.p {{ margin-right: 1rem; }}
</style>
<h1>What decided</h1>
<p class="about">Each word is coloured by what it adds to the logit of the predicted class (integrated gradients, from
as many words that mean nothing; votes of n-grams shared by their characters or words), in each text on a scale of its
own. Point at a word for its value. Dotted: not in the model's vocabulary. Model: {run}</p>
<div class="legend">against the class <i></i> for the class</div>
{blocks}
</html>
"""
