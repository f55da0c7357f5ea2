from __future__ import annotations

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from datamodules.synthetic import SMALLEST_REVIEWS, sample_reviews


def test_the_same_seed_gives_the_same_reviews_and_another_seed_others() -> None:
    assert sample_reviews(500, 1).equals(sample_reviews(500, 1))
    assert not sample_reviews(500, 1).equals(sample_reviews(500, 2))


@pytest.mark.parametrize("size", [SMALLEST_REVIEWS, 1003, 4000])
def test_there_are_as_many_rows_as_asked_for_in_ten_unbalanced_categories(size: int) -> None:
    frame = sample_reviews(size, 0)
    counts = frame["cat"].value_counts()
    assert len(frame) == size
    assert len(counts) == 10
    assert counts.max() > 4 * counts.min()
    assert set(frame["label"]) == {"0", "1"}


def test_too_small_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        sample_reviews(SMALLEST_REVIEWS - 1, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_traps_of_a_real_file_are_in_it(seed: int) -> None:
    frame = sample_reviews(1000, seed)
    assert (frame["review"] == "").sum() == 1
    assert frame["review"].str.contains("\ufeff").sum() == 1
    filled = frame[frame["review"] != ""]
    assert filled.duplicated(["cat", "review"]).sum() >= 3
    assert (filled.groupby("review")["cat"].nunique() > 1).any()


@pytest.mark.parametrize(("target", "least", "most"), [("cat", 0.82, 0.93), ("label", 0.88, 0.97)])
def test_a_linear_model_learns_it_but_not_all_of_it(target: str, least: float, most: float) -> None:
    frame = sample_reviews(3000, 0).sample(frac=1, random_state=0)
    model = make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2), LinearSVC(C=0.5))
    assert least < cross_val_score(model, frame["review"], frame[target], cv=3).mean() < most
