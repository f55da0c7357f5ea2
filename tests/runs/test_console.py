from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import RichProgressBar

from runs.train import Progress


@pytest.mark.parametrize(("most", "shown"), [(15, "Epoch 1/15"), (-1, "Epoch 1"), (None, "Epoch 1")])
def test_the_progress_bar_counts_epochs_from_one(most: int | None, shown: str) -> None:
    bar: Any = Progress()
    bar._trainer = SimpleNamespace(max_epochs=most)
    assert "_get_train_description" in vars(RichProgressBar)  # what Lightning calls for its bar
    assert bar._get_train_description(0).strip() == shown
