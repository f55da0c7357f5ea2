from __future__ import annotations

import csv
import hashlib
import json
import logging
import marshal
import os
import re
import subprocess
import sys
import types
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import DataError, TextDataModule, text
from datamodules.corpus import Prepared, TextDataset, clean
from datamodules.encoding import TextEncoder
from datamodules.streaming import LINE, read_table
from datamodules.synthetic import sample_reviews
from datamodules.text import SAMPLE, Vocabulary, tokenize

SPLITS = ("train", "val", "test")
WORDS = ["好", "不错", "物流", "很快", "书", "内容", "酒店", "早餐", "NA", "a", "b", "c", "d", "e", "f", "g"]


def make_rows(count: int = 300, seed: int = 0) -> list[tuple[str, str]]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, count)
    return [(f"类{i * i % 3}", " ".join(generator.choice(WORDS, n)) + f" {i}") for i, n in enumerate(lengths)]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cat", "review"])
        writer.writerows(rows)
    return path


def module(path: Path, **options: object) -> TextDataModule:
    keys: dict[str, object] = {"tokenizer": "whitespace", "min_frequency": 1, "batch_size": 16} | options
    data = TextDataModule("mine", path=str(path), **keys)  # type: ignore[arg-type]
    data.setup()
    return data


def loaders(data: TextDataModule) -> dict[str, text.ResumableLoader]:
    return {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}


def described(data: TextDataModule, split: str) -> list[dict]:
    size = data.report["splits"][split]["rows"]
    return data.describe(split, np.arange(size)).to_dict("records")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "我的 reviews.csv", make_rows())


# --- batches ---


@pytest.mark.parametrize("max_length", [4, 256])
def test_batches_are_the_encoded_padded_texts_and_describe_names_them(table: Path, max_length: int) -> None:
    data = module(table, max_length=max_length, max_vocabulary=12)
    raw = read_table(table, columns=["cat", "review"]).to_dict("list")
    vocabulary, classes = data.facts["vocabulary"], data.facts["classes"]
    for split, loader in loaders(data).items():
        for batch in loader:
            rows = data.describe(split, batch["index"].numpy())
            width = max(min(len(words.split()), max_length) for words in rows["text"])
            assert batch["inputs"].shape == (len(rows), width)
            assert {value.dtype for value in batch.values()} == {torch.int64}
            for i, row in enumerate(rows.to_dict("records")):
                tokens = row["text"].split()
                expected = [vocabulary.index(t) if t in vocabulary[2:] else 1 for t in tokens[:max_length]]
                assert batch["inputs"][i].tolist() == expected + [0] * (width - len(expected))
                assert batch["lengths"][i] == len(expected)
                assert row["length"] == len(tokens)
                assert classes[batch["targets"][i]] == row["label"] == raw["cat"][row["row"]]
                assert row["text"] == raw["review"][row["row"]]


def test_every_row_is_in_exactly_one_split(table: Path) -> None:
    data = module(table)
    rows = [row["row"] for split in SPLITS for row in described(data, split)]
    assert sorted(rows) == list(range(300))
    for split, loader in loaders(data).items():
        index = torch.cat([batch["index"] for batch in loader])
        assert sorted(index.tolist()) == list(range(data.report["splits"][split]["rows"]))


def test_texts_without_a_token_make_a_batch_of_padding() -> None:
    nothing = np.zeros(3, dtype=np.int64)
    batch = TextDataset(np.empty(0, dtype=np.int32), nothing, nothing, nothing, [""] * 3)[[2, 0]]
    assert batch["inputs"].tolist() == [[0], [0]]
    assert batch["lengths"].tolist() == [0, 0]
    starts, lengths = np.array([0, 3, 3]), np.array([3, 0, 0])
    some = TextDataset(np.array([7, 8, 9]), starts, lengths, nothing, ["", "", ""])[[1, 0]]
    assert some["inputs"].tolist() == [[0, 0, 0], [7, 8, 9]]


def test_characters_are_the_code_points_of_the_whole_text(table: Path) -> None:
    nothing = np.zeros(3, dtype=np.int64)
    batch = TextDataset(np.empty(0, dtype=np.int32), nothing, nothing, nothing, ["", "好书𝄞", "a"])[[2, 1, 0]]
    assert batch["characters"].tolist() == [[97, 0, 0], [ord("好"), ord("书"), ord("𝄞")], [0, 0, 0]]
    data = module(table, max_length=5)
    for split, loader in loaders(data).items():
        for batch in loader:
            spelt = ["".join(chr(point) for point in row if point) for row in batch["characters"].tolist()]
            assert spelt == data.describe(split, batch["index"].numpy())["text"].tolist()


def test_truncation_is_counted_per_split(table: Path) -> None:
    data = module(table, max_length=5)
    for split in SPLITS:
        long = sum(row["length"] > 5 for row in described(data, split))
        assert data.report["splits"][split]["truncated"] == long > 0


# --- cleaning ---

TRAPS = st.sampled_from(["好", " 好", "好\ufeff", "\ufeff", "", "  ", "NA", "null", "None", "好 书", "\u3000书\n", "a"])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from(["x", "y", "z "]), TRAPS), min_size=1, max_size=40))
def test_cleaning_matches_a_plain_loop(rows: list[tuple[str, str]]) -> None:
    kept: list[tuple[str, str, int]] = []
    counts = Counter(bom_removed=0, nul_removed=0, empty_dropped=0, duplicates_dropped=0)
    for number, (label, review) in enumerate(rows):
        bare = review.replace("\ufeff", "").strip()
        counts["bom_removed"] += "\ufeff" in review
        if not bare:
            counts["empty_dropped"] += 1
        elif any((label.strip(), bare) == (other, same) for other, same, _ in kept):
            counts["duplicates_dropped"] += 1
        else:
            kept.append((label.strip(), bare, number))
    labels_of = {bare: {label for label, same, _ in kept if same == bare} for _, bare, _ in kept}
    conflicts = {bare for bare, labels in labels_of.items() if len(labels) > 1}
    counts |= Counter(
        conflicting_texts=len(conflicts),
        conflicting_rows=sum(bare in conflicts for _, bare, _ in kept),
        rows_kept=len(kept),
        rows_read=len(rows),
    )
    frame = text.pd.DataFrame(rows, columns=["cat", "review"], dtype=object).assign(**{LINE: range(2, len(rows) + 2)})
    if not kept:
        with pytest.raises(DataError, match="holds no text"):
            clean(frame, "review", "cat", "t.csv")
        return
    corpus, report = clean(frame, "review", "cat", "t.csv")
    assert list(zip(corpus.labels, corpus.texts, corpus.rows, strict=True)) == kept
    assert corpus.classes == list(dict.fromkeys(label for label, _, _ in kept))
    assert Counter(report) == counts


def test_nul_characters_are_removed_and_counted(tmp_path: Path) -> None:
    rows = make_rows()
    rows[7] = (rows[7][0], "a<NUL>b")  # Python 3.10's csv doesn't write the character itself
    path = write(tmp_path / "t.csv", rows)
    path.write_text(path.read_text(encoding="utf-8").replace("<NUL>", "\0"), encoding="utf-8")
    data = module(path)
    assert data.report["nul_removed"] == 1
    assert "ab" in {row["text"] for split in SPLITS for row in described(data, split)}


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan"])
def test_words_that_look_like_missing_values_stay_text(tmp_path: Path, word: str) -> None:
    rows = make_rows()
    rows[4] = (rows[4][0], word)
    data = module(write(tmp_path / "t.csv", rows))
    assert (data.report["empty_dropped"], data.report["rows_kept"]) == (0, 300)
    assert word in {row["text"] for split in SPLITS for row in described(data, split)}


def test_every_trap_that_was_met_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*make_rows(), ("类0", ""), ("类0", "\ufeff重复"), ("类0", "重复"), ("类1", "重复")]
    with caplog.at_level(logging.INFO):
        data = module(write(tmp_path / "t.csv", rows), max_length=9)
        data.setup()
    (line,) = [record.getMessage() for record in caplog.records if "rows read" in record.getMessage()]
    for said in ("304 rows read", "1 byte order", "1 empty", "1 exact duplicates", "2 rows kept", "texts cut to 9"):
        assert said in line
    assert "NUL" not in line


def test_rows_without_a_label_are_listed_by_line(tmp_path: Path) -> None:
    rows = make_rows()
    rows[2] = (rows[2][0], "two\nlines")
    rows[5] = rows[9] = (" ", "text")
    with pytest.raises(DataError, match=r"t\.csv: column 'cat' is empty in 2 row\(s\), line\(s\) 8, 12"):
        module(write(tmp_path / "t.csv", rows))


def test_rows_without_a_label_can_be_left_out_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows()
    whole, kept = rows[:], [row for at, row in enumerate(rows) if at not in (5, 9)]
    whole[5] = whole[9] = (" ", "text")
    caplog.set_level("INFO")
    found = module(write(tmp_path / "t.csv", whole), unlabelled="drop")
    expected = module(write(tmp_path / "kept.csv", kept))
    assert found.report["unlabelled_dropped"] == 2
    assert "2 texts without a class dropped" in caplog.text
    texts, of_kept = (
        [sorted(row["text"] for row in described(data, split)) for split in loaders(data)] for data in (found, expected)
    )
    assert texts == of_kept


# --- splits ---


def test_splits_are_stratified_and_of_the_sizes_asked_for(table: Path) -> None:
    data = module(table, val_fraction=0.15, test_fraction=0.2)
    total = Counter(label for label, _ in make_rows())
    sizes = {split: data.report["splits"][split] for split in SPLITS}
    assert [sizes[split]["rows"] for split in SPLITS] == [195, 45, 60]
    for split, fraction in (("val", 0.15), ("test", 0.2)):
        for name, support in sizes[split]["classes"].items():
            assert abs(support - fraction * total[name]) <= 1


def test_the_split_depends_on_split_seed_and_not_on_seed(table: Path) -> None:
    def rows(**options: int) -> list[list[int]]:
        data = module(table, **options)
        return [[row["row"] for row in described(data, split)] for split in SPLITS]

    assert rows(seed=0) == rows(seed=1)
    assert rows(split_seed=0) != rows(split_seed=1)


def test_seed_changes_the_order_of_training_only(table: Path) -> None:
    first, second = (module(table, seed=seed) for seed in (0, 1))
    for split in SPLITS:
        orders = [[batch["index"].tolist() for batch in loaders(data)[split]] for data in (first, second)]
        assert (orders[0] == orders[1]) == (split != "train")


def test_index_5_tests_on_every_fifth_row_of_the_file(tmp_path: Path) -> None:
    rows = make_rows()
    rows[3] = rows[10] = (rows[3][0], "")  # dropped rows do not renumber the others
    data = module(write(tmp_path / "t.csv", rows), split="index%5")
    assert [row["row"] for row in described(data, "test")] == [n for n in range(0, 300, 5) if n != 10]
    assert data.report["splits"]["val"]["rows"] == 30
    assert all(row["row"] % 5 for split in ("train", "val") for row in described(data, split))


def test_limit_keeps_the_classes_in_proportion(table: Path) -> None:
    data = module(table, limit=90)
    total = Counter(label for label, _ in make_rows())
    kept = Counter(row["label"] for split in SPLITS for row in described(data, split))
    assert sum(kept.values()) == 90
    assert all(abs(kept[name] - 0.3 * total[name]) <= 1 for name in total)
    whole = module(table)
    assert data.facts["classes"] == whole.facts["classes"]
    assert [data.report["rows_after_limit"], whole.report["rows_after_limit"]] == [90, None]


def test_a_single_class_is_an_error(tmp_path: Path) -> None:
    rows = [("书", review) for _, review in make_rows()]
    with pytest.raises(DataError, match=r"one class only.*\{'书': 300\}"):
        module(write(tmp_path / "t.csv", rows))


def test_classes_too_small_for_the_splits_are_listed_with_all_counts(tmp_path: Path) -> None:
    rows = [*make_rows(30), ("少", "甲"), ("少", "乙")]
    with pytest.raises(DataError, match=r"t\.csv cannot be split.*too few rows of \{'少': 2\}.*small_classes=drop"):
        module(write(tmp_path / "t.csv", rows))


def test_more_classes_than_test_rows_is_an_error(tmp_path: Path) -> None:
    rows = [(f"c{i % 10}", str(i)) for i in range(30)]
    with pytest.raises(DataError, match=r"cannot draw 3 of 30 rows.*'c0': 3"):
        module(write(tmp_path / "t.csv", rows))


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_empty_split_is_an_error_with_all_sizes(table: Path, split: str) -> None:
    with pytest.raises(DataError, match=rf"the {split} split is empty \(sizes .*'{split}': 0"):
        module(table, **{f"{split}_fraction": 0.0})


def test_a_table_of_one_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too few rows of \{'书': 1\}"):
        module(write(tmp_path / "t.csv", [("书", "好")]))


def test_a_class_absent_from_a_split_is_warned_about_and_has_support_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*make_rows(297), *[("少", str(i)) for i in range(3)]]
    data = module(write(tmp_path / "t.csv", rows))
    absent = [split for split in SPLITS if data.report["splits"][split]["classes"]["少"] == 0]
    assert absent
    for split in absent:
        assert f"the {split} split has no row of ['少']" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"tokenizer": "nltk"},
        {"split": "random"},
        {"max_length": 0},
        {"batch_size": 0},
        {"val_fraction": -0.1},
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"max_vocabulary": 1},
        {"val_fraction": float("nan")},
        {"limit": 0},
        {"split_seed": -1},
        {"split_seed": 5_000_000_000},
    ],
)
def test_settings_out_of_range_are_refused_before_any_file_is_read(options: dict) -> None:
    with pytest.raises(DataError, match=f"data.{next(iter(options))}"):
        TextDataModule("mine", path="/nowhere.csv", **options)


# --- vocabulary ---


def test_the_vocabulary_sees_only_training_texts(tmp_path: Path) -> None:
    rows = make_rows()
    first = module(write(tmp_path / "a.csv", rows))
    for split in ("val", "test"):
        for row in described(first, split):
            label, review = rows[row["row"]]
            rows[row["row"]] = (label, f"{review} 泄漏 泄漏 好 好 好 好 好 好")
    second = module(write(tmp_path / "b.csv", rows))
    assert second.facts == first.facts
    assert [b["inputs"].tolist() for b in first.train_dataloader()] == [
        b["inputs"].tolist() for b in second.train_dataloader()
    ]


def test_the_vocabulary_is_counted_as_a_plain_counter_would(table: Path) -> None:
    data = module(table, min_frequency=3, max_vocabulary=15)
    counts = Counter(token for row in described(data, "train") for token in row["text"].split())
    frequent = sorted((t for t, c in counts.items() if c >= 3), key=lambda t: (-counts[t], t))
    assert data.facts["vocabulary"] == ["<pad>", "<unk>", *frequent[:13]]
    assert data.facts["vocab_size"] == 15
    assert data.report["vocabulary"]["token_types_in_train"] == len(counts)


def test_a_vocabulary_is_rebuilt_from_its_state() -> None:
    vocabulary = Vocabulary.build({"b": 2, "a": 2, "c": 5, "d": 1}, min_frequency=2)
    assert vocabulary.state() == ["<pad>", "<unk>", "c", "a", "b"]
    again = Vocabulary(vocabulary.state())
    assert again.encode(["b", "d", "c"]).tolist() == [4, 1, 2]
    with pytest.raises(ValueError, match="starts with"):
        Vocabulary(["c", "a"])


def test_words_spelt_like_padding_are_unknown_and_never_padding() -> None:
    vocabulary = Vocabulary.build({"<pad>": 9, "<unk>": 9, "a": 1})
    assert vocabulary.encode(["<pad>", "<unk>", "a"]).tolist() == [1, 1, 2]
    assert len(vocabulary) == 3


def test_texts_of_unknown_tokens_only_are_counted(tmp_path: Path) -> None:
    rows = make_rows()
    test_rows = [row["row"] for row in described(module(write(tmp_path / "a.csv", rows)), "test")]
    for row in test_rows[:4]:
        rows[row] = (rows[row][0], f"全新{row} 未知{row}")
    data = module(write(tmp_path / "b.csv", rows))
    assert data.report["splits"]["test"]["only_unknown_tokens"] == 4


# --- tokens ---


def test_tokenizers_cut_as_their_names_say() -> None:
    assert tokenize(["我爱 北京天安门", "a b"], "jieba") == [["我", "爱", "北京", "天安门"], ["a", "b"]]
    assert tokenize(["我 a\u3000b", ""], "char") == [["我", "a", "b"], []]
    assert tokenize(["我 ab\u3000c"], "whitespace") == [["我", "ab", "c"]]
    with pytest.raises(DataError, match="jieba, char, whitespace"):
        tokenize(["a"], "spacy")


def jieba_itself(texts: list[str]) -> list[list[str]]:
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return [[token for token in jieba.cut(text) if not token.isspace()] for text in texts]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30) | st.text("好不错的酒店iPhone6 +#&._%-\r\n\u3000，。！😀", max_size=30))
def test_runs_that_are_remembered_are_cut_as_jieba_cuts_the_whole_text(one: str) -> None:
    assert tokenize([one, one], "jieba") == jieba_itself([one, one])


def test_sample_reviews_are_cut_as_jieba_cuts_them() -> None:
    texts = sample_reviews(300, seed=5)["review"].tolist()
    assert tokenize(texts, "jieba") == jieba_itself(texts)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("RNN_LAB_DATA"), reason="needs RNN_LAB_DATA")
def test_real_reviews_are_cut_as_jieba_cuts_them() -> None:
    data = TextDataModule("online", files=["online_shopping_10_cats.zip"], on_missing="error")
    found = data.source.locate()
    assert found is not None
    texts = read_table(found, columns=["review"])["review"].tolist()[::8]
    assert tokenize(texts, "jieba") == jieba_itself(texts)


def test_jieba_says_nothing_and_keeps_its_dictionary_in_the_cache(tmp_path: Path) -> None:
    code = "from datamodules.text import tokenize; print(tokenize(['物流很快'], 'jieba'))"
    environment = os.environ | {"RNN_LAB_CACHE": str(tmp_path / "缓 存"), "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert (done.stdout, done.stderr) == ("[['物流', '很快']]\n", "")
    assert (tmp_path / "缓 存" / "jieba.cache").is_file()
    assert not list(tmp_path.glob("jieba*"))


only_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can write for other users")


@only_root
@pytest.mark.exhaustive
def test_a_dictionary_that_others_may_have_planted_cuts_no_text(tmp_path: Path) -> None:
    """A start whose home can't be written falls back on no shared folder either."""
    code = "from datamodules.text import tokenize; print(tokenize(['物流很快'], 'jieba'))"
    shared = tmp_path / "shared"
    shared.mkdir()
    planted = shared / "jieba.cache"
    planted.write_bytes(marshal.dumps(({"物": 0, "物流": 0, "物流很": 0, "物流很快": 1000}, 1000)))
    os.utime(planted, (2**31, 2**31))
    for path, owner in ((planted, 65534), (planted, 0)):
        os.chown(path, owner, owner)
        shared.chmod(0o777)
        environment = os.environ | {"RNN_LAB_CACHE": str(shared), "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
        assert done.stdout == ("[['物流', '很快']]\n" if owner else "[['物流很快']]\n")
    unwritable = environment | {"RNN_LAB_CACHE": "/proc/nothing", "TMPDIR": str(shared)}
    done = subprocess.run([sys.executable, "-c", code], env=unwritable, capture_output=True, encoding="utf-8")
    assert done.stdout == "[['物流', '很快']]\n"
    assert [path.name for path in shared.iterdir()] == ["jieba.cache"]


@only_root
@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "is_read"), [(0o755, 0o644, True), (0o755, 0o666, False), (0o777, 0o644, False)]
)
def test_tokens_that_others_may_have_planted_are_made_anew(
    table: Path, cache: Path, folder_mode: int, file_mode: int, is_read: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A colleague's folder that was chosen is read; not what everybody may have written."""
    facts = module(table).facts
    (file,) = cache.glob("corpus-*")
    os.chown(file, 65534, 65534)
    file.chmod(file_mode)
    cache.chmod(folder_mode)
    caplog.clear()
    assert module(table).facts == facts
    assert ("may be another user's work" in caplog.text) != is_read


def test_new_texts_are_encoded_as_in_training_one_row_each(table: Path) -> None:
    data = module(table, max_length=6)
    batch = next(iter(data.test_dataloader()))
    texts = data.describe("test", batch["index"].numpy())["text"].tolist()
    facts = json.loads(json.dumps(data.facts))
    encode = TextEncoder(facts)
    encoded = encode([f"\ufeff {one}\0\n" for one in texts]).dataset[range(len(texts))]
    for name in ("inputs", "characters", "lengths"):
        assert torch.equal(encoded[name], batch[name])

    odd = encode(["", "未见 过", " ".join(["a"] * 9), " ".join(["a"] * 6)])
    assert odd.dataset.lengths.tolist() == [0, 2, 6, 6]
    assert odd.cut.tolist() == [False, False, True, False]
    assert odd.known_counts.tolist() == [0, 0, 6, 6]
    assert encode([""]).dataset[[0]]["inputs"].shape == (1, 1)
    assert encode([]).dataset[[]]["inputs"].shape == (0, 1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_start_does_not_tokenise(table: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = module(table)
    monkeypatch.setattr(text, "tokenize", lambda *_, **__: pytest.fail("tokenised again"))
    again = module(table)
    assert again.facts == first.facts
    assert again.report == first.report
    assert again.describe("test", np.arange(9)).equals(first.describe("test", np.arange(9)))
    assert [b["inputs"].tolist() for b in again.train_dataloader()] == [
        b["inputs"].tolist() for b in first.train_dataloader()
    ]


def test_a_file_that_may_have_lost_rows_is_warned_about_at_every_start(
    table: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = table.read_bytes()
    swallowed = '类0,"很好\r\n类0,不错\r\n类0,还行"'
    table.write_bytes(written + swallowed.encode())
    for _ in range(2):
        caplog.clear()
        report = module(table).report
        assert "does not end with a line break" in caplog.text
        assert re.search("line 302: .* its quotes may enclose other rows", caplog.text)
    assert (report["unterminated"], report["enclosing_rows"], report["rows_read"]) == (True, 1, 301)
    assert len(list(cache.glob("corpus-*"))) == 1


def test_a_second_start_does_not_draw_the_split_again_but_for_other_seeds_and_labels(
    table: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [module(table, split_seed=seed) for seed in (0, 1)]
    monkeypatch.setattr(text, "split_by_class", lambda *_, **__: pytest.fail("drawn again"))
    for seed, first in enumerate(before):
        again = module(table, split_seed=seed)
        for split in SPLITS:
            assert described(again, split) == described(first, split)
    others = [(f"other {label}", review) for label, review in make_rows()]
    for changes in ({"split_seed": 2}, {"test_fraction": 0.2}, {"path": write(tmp_path / "others.csv", others)}):
        with pytest.raises(pytest.fail.Exception, match="drawn again"):
            module(**{"path": table, **changes})  # type: ignore[arg-type]


def test_another_column_and_another_limit_are_not_taken_from_the_cache(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "twice.csv"
    rows = [f"{label},{words},其他 {number}\n" for number, (label, words) in enumerate(make_rows())]
    file.write_text("cat,review,other\n" + "".join(rows), encoding="utf-8")
    whole = module(file)
    assert module(file, text_column="other").facts["vocabulary"] != whole.facts["vocabulary"]
    few = module(file, limit=60)
    assert sum(split["rows"] for split in few.report["splits"].values()) == 60


def test_a_file_read_wrongly_at_first_is_not_taken_from_the_cache_once_it_is_read_rightly(
    tmp_path: Path, cache: Path
) -> None:
    file = tmp_path / "t.csv"
    content = "cat;review\n" + "".join(f"{label};{words}\n" for label, words in make_rows())
    file.write_text(content, encoding="gb18030")
    wrong = module(file, encoding="latin-1", separator=";").facts["vocabulary"]
    right = module(file, encoding="gb18030", separator=";").facts["vocabulary"]
    assert "不错" in right
    assert "不错" not in wrong
    with pytest.raises(DataError, match="review"):
        module(file, encoding="gb18030")  # of commas, there is one column


def test_rows_without_a_label_are_an_error_again_though_the_cache_is_without_them(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "t.csv", [*make_rows(), (" ", "text")])
    module(file, unlabelled="drop")
    with pytest.raises(DataError, match="is empty in 1 row"):
        module(file)


def test_other_texts_and_other_tokenizers_have_other_cache_entries(table: Path, cache: Path, tmp_path: Path) -> None:
    module(table)
    module(table, tokenizer="char")
    module(write(tmp_path / "other.csv", make_rows(seed=1)))
    module(table, val_fraction=0.3, seed=4)  # neither changes the tokens
    assert len(list(cache.glob("corpus-*"))) == 3


def test_another_version_of_the_tokenizer_has_another_cache_entry(
    table: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(table)
    monkeypatch.setattr(text, "_tokenizer_version", lambda _: "next")
    module(table)
    assert len(list(cache.glob("corpus-*"))) == 2


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_token_cache_is_noticed_and_made_anew(
    table: Path, cache: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    facts = module(table).facts
    (file,) = cache.glob("corpus-*")
    whole, generator = file.read_bytes(), np.random.default_rng(seed)
    at = int(generator.integers(len(whole)))
    file.write_bytes(whole[:at] if seed % 2 else whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    assert module(table).facts == facts
    assert "damaged" in caplog.text
    assert Prepared.load(file) is not None


def test_a_cache_that_cannot_be_read_is_as_good_as_none(table: Path, cache: Path) -> None:
    facts = module(table).facts
    (file,) = cache.glob("corpus-*")
    file.unlink()
    file.mkdir()
    assert module(table).facts == facts


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_others_may_read_the_cache_as_the_umask_says(table: Path, cache: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        module(table)
    finally:
        os.umask(before)
    (file,) = cache.glob("corpus-*")
    assert file.stat().st_mode & 0o777 == mode


def test_the_cache_keeps_the_newest_eight_prepared_files(table: Path, cache: Path) -> None:
    cache.mkdir()
    for age in range(12):
        old = cache / f"corpus-char-{age:02}.bin"
        old.touch()
        os.utime(old, (10_000 - age, 10_000 - age))
    (cache / "reviews.zip").touch()
    module(table)
    assert sorted(file.name for file in cache.glob("corpus-char-*")) == [
        f"corpus-char-{age:02}.bin" for age in range(7)
    ]
    assert len(list(cache.glob("corpus-*.bin"))) == 8
    assert (cache / "reviews.zip").exists()


def test_a_crash_while_writing_the_cache_leaves_no_file(
    table: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            module(table)
    assert not list(cache.glob("*"))
    module(table)


def test_a_cache_that_cannot_be_written_is_a_warning_only(
    table: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    module(table)
    assert "cannot keep the tokens" in caplog.text


# --- the module ---


def test_without_data_the_sample_is_used_under_its_own_name(caplog: pytest.LogCaptureFixture) -> None:
    data = TextDataModule("shop", files=["no_such_file.zip"], tokenizer="char", sample_size=400)
    assert (data.name, data.is_sample) == ("shop", False)
    data.setup()
    assert (data.name, data.is_sample, data.report["name"]) == (SAMPLE, True, SAMPLE)
    assert data.report["rows_read"] == 400
    assert data.report["empty_dropped"] == data.report["bom_removed"] == 1
    assert data.report["duplicates_dropped"] >= 3
    assert data.report["conflicting_texts"] >= 1
    assert "shop IS MISSING" in caplog.text
    assert data.facts["classes"] == [
        "书籍",
        "平板",
        "手机",
        "水果",
        "洗发水",
        "热水器",
        "蒙牛",
        "衣服",
        "计算机",
        "酒店",
    ]


def test_the_sample_can_be_asked_for_and_has_two_targets(caplog: pytest.LogCaptureFixture) -> None:
    data = TextDataModule(SAMPLE, tokenizer="char", sample_size=400, target="label")
    data.setup()
    assert sorted(data.facts["classes"]) == ["0", "1"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_columns_the_sample_does_not_have_are_an_error() -> None:
    with pytest.raises(DataError, match=r"no columns \['text'\]"):
        TextDataModule(SAMPLE, text_column="text").setup()


def test_facts_and_report_are_plain_values(table: Path) -> None:
    data = module(table)
    assert json.loads(json.dumps(data.facts)) == data.facts
    assert json.loads(json.dumps(data.report)) == data.report


def test_a_second_set_up_changes_nothing(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(table)
    report = data.report
    monkeypatch.setattr(text, "read_table", lambda *_, **__: pytest.fail("read again"))
    data.setup("fit")
    data.setup("test")
    assert data.report is report


def test_processes_of_a_trainer_share_the_batches(table: Path) -> None:
    data = module(table)
    parts = []
    for rank in range(2):
        data.trainer = types.SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        parts.append([i for batch in data.test_dataloader() for i in batch["index"].tolist()])
    assert sorted(parts[0] + parts[1]) == list(range(30))
    assert all(parts)


@pytest.mark.slow
def test_another_locale_changes_nothing(table: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json\nfrom datamodules import TextDataModule\n"
        "data = TextDataModule('mine', path=sys.argv[1], tokenizer='whitespace', min_frequency=1, batch_size=16)\n"
        "data.setup()\nprint(json.dumps([data.facts, data.report]))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "RNN_LAB_CACHE": str(tmp_path / "缓")}
    done = subprocess.run([sys.executable, "-c", code, str(table)], env=environment, capture_output=True, check=True)
    data = module(table)
    assert json.loads(done.stdout) == [data.facts, data.report]


# --- the real file ---


@pytest.mark.skipif(not os.environ.get("RNN_LAB_DATA"), reason="RNN_LAB_DATA names no folder")
def test_the_real_reviews_are_read_whole_and_cleaned_as_counted() -> None:
    known = "6816ded66fde9d0927ecbd370b5e12d0174d1abac35192ec014ac2a0a8d25858"
    files = ["online_shopping_10_cats.zip"]
    data = TextDataModule("online", files=files, sha256={files[0]: known}, on_missing="error", tokenizer="char")
    data.setup()
    report = data.report
    assert (report["rows_read"], report["empty_dropped"], report["duplicates_dropped"]) == (62_774, 1, 18)
    assert (report["rows_kept"], report["conflicting_rows"]) == (62_755, 60)
    assert report["bom_removed"] > 0
    sizes = {split: report["splits"][split] for split in SPLITS}
    assert [sizes[split]["rows"] for split in SPLITS] == [50_203, 6_276, 6_276]
    per_class = [sum(sizes[split]["classes"][name] for split in SPLITS) for name in data.facts["classes"]]
    assert (len(per_class), min(per_class)) == (10, sizes["train"]["classes"]["热水器"] + 115)


# --- splits with files of their own ---


def test_splits_with_files_of_their_own_are_these_files(tmp_path: Path) -> None:
    rows = make_rows(300)
    parts = {"train": rows[:200], "val": rows[200:260], "test": rows[260:]}
    paths = {split: write(tmp_path / f"{split}.csv", part) for split, part in parts.items()}
    others = {"val_path": str(paths["val"]), "test_path": str(paths["test"])}
    data = module(paths["train"], **others)
    for split, part in parts.items():
        found = described(data, split)
        assert [(row["label"], row["text"]) for row in found] == part
        assert [row["row"] for row in found] == list(range(len(part)))
    words = {word for _, review in parts["train"] for word in review.split()}
    assert set(data.facts["vocabulary"][2:]) == words
    sha256 = {split: hashlib.sha256(path.read_bytes()).hexdigest() for split, path in paths.items()}
    assert {split: file["sha256"] for split, file in data.report["files"].items()} == sha256
    assert data.report["sha256"] == data.source.digest() not in sha256.values()
    swapped = module(paths["train"], val_path=others["test_path"], test_path=others["val_path"])
    assert swapped.report["sha256"] != data.report["sha256"]
    assert [row["text"] for row in described(swapped, "val")] == [review for _, review in parts["test"]]
    again = module(paths["train"], **others)  # from the cache
    assert (again.report, described(again, "test")) == (data.report, described(data, "test"))


@pytest.mark.parametrize(("own", "drawn"), [("test", "val"), ("val", "test")])
def test_a_split_without_a_file_is_drawn_from_the_training_file(own: str, drawn: str, tmp_path: Path) -> None:
    rows = make_rows(300)
    train, other = write(tmp_path / "a.csv", rows[:200]), write(tmp_path / "b.csv", rows[200:])
    data = module(train, **{f"{own}_path": str(other)})
    assert [row["text"] for row in described(data, own)] == [review for _, review in rows[200:]]
    texts = {split: {row["text"] for row in described(data, split)} for split in ("train", drawn)}
    assert len(texts[drawn]) == 20
    assert texts["train"] | texts[drawn] == {review for _, review in rows[:200]}
    assert data.report["sha256"] != module(train, **{f"{drawn}_path": str(other)}).report["sha256"]
    assert module(train, limit=150, **{f"{own}_path": str(other)}).report["rows_after_limit"] == 150


def test_a_text_that_two_files_hold_is_kept_in_the_first_and_counted(tmp_path: Path) -> None:
    rows = make_rows(300)
    val = [*rows[200:250], rows[0], rows[0], ("类9" if rows[1][0] == "类0" else "类0", rows[1][1])]
    paths = [
        write(tmp_path / name, part)
        for name, part in [("a.csv", rows[:200]), ("b.csv", val), ("c.csv", [*rows[250:], rows[201]])]
    ]
    data = module(paths[0], val_path=str(paths[1]), test_path=str(paths[2]))
    assert data.report["duplicates_across_files"] == {"val": 1, "test": 1}
    assert data.report["duplicates_dropped"] == 1
    assert (data.report["conflicting_rows"], data.report["conflicting_texts"]) == (2, 1)
    assert [len(described(data, split)) for split in SPLITS] == [200, 51, 50]


@pytest.mark.parametrize(("split", "repeated", "outcome"), [
    ("test", 2, ""), ("test", 3, "warning"), ("test", 40, "error"), ("val", 3, "warning"), ("val", 40, "error"),
])  # fmt: skip
def test_rows_that_an_earlier_file_holds_are_a_loss_of_their_file(
    split: str, repeated: int, outcome: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(300)
    train, other = rows[:200], rows[200 - repeated : 300 - repeated]
    paths = [write(tmp_path / name, part) for name, part in [("a.csv", train), ("b.csv", other)]]
    own = {f"{split}_path": str(paths[1])}
    message = (
        rf"b\.csv: {repeated} of 100 different rows of the {split} file \({repeated}%\) are lost: they occur in "
        r".*a\.csv as well \(same class, same text\): delete them from one of the files"
    )
    if outcome == "error":
        with pytest.raises(DataError, match=rf"{message}.*data\.allow_loss=true"):
            module(paths[0], **own, allow_loss=False)
    caplog.clear()
    data = module(paths[0], **own, allow_loss=outcome == "error")
    assert len(described(data, split)) == 100 - repeated
    warned = [record.getMessage() for record in caplog.records if "are lost" in record.getMessage()]
    assert len(warned) == bool(outcome)
    assert all(re.search(message, text) for text in warned)
    caplog.clear()
    mended = write(tmp_path / "c.csv", train[: 200 - repeated])  # what the message says
    assert len(described(module(mended, **own, allow_loss=False), split)) == 100
    assert "are lost" not in caplog.text


@pytest.mark.parametrize("allow_loss", [False, True])
def test_a_file_of_nothing_but_rows_of_an_earlier_one_is_an_error(allow_loss: bool, tmp_path: Path) -> None:
    rows = make_rows(300)
    paths = [
        str(write(tmp_path / name, part))
        for name, part in [("a.csv", rows[:200]), ("b.csv", rows[200:]), ("c.csv", [*rows[190:210], rows[190]])]
    ]
    message = (
        r"c\.csv: all of its 20 different rows occur in \S*a\.csv or \S*b\.csv as well.* leave it out: the split is "
        r"then drawn from \S*a\.csv"
    )
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError, match=message):
            module(Path(paths[0]), val_path=paths[1], test_path=paths[2], allow_loss=allow_loss)
    assert len(described(module(Path(paths[0]), val_path=paths[1], allow_loss=False), "test")) == 20


def test_rows_without_a_text_are_counted_for_each_file(tmp_path: Path) -> None:
    rows = make_rows(300)
    train = write(tmp_path / "a.csv", rows[:280])
    test = write(tmp_path / "b.csv", [(label, review * (at > 7)) for at, (label, review) in enumerate(rows[280:])])
    with pytest.raises(DataError, match=r"b\.csv: 8 of 20 rows of the test file \(40%\) are lost: they have no text"):
        module(train, test_path=str(test), allow_loss=False)


def test_mistakes_of_splits_with_files_of_their_own_are_told(tmp_path: Path) -> None:
    train, other = write(tmp_path / "a.csv", make_rows(60)), write(tmp_path / "b.csv", [("新", "甲"), ("类0", "乙")])
    with pytest.raises(
        DataError, match=r"class '新' occurs only in \S*b\.csv: .* 2 row\(s\) of each in the training file"
    ):
        module(train, test_path=str(other))
    assert len(described(module(train, test_path=str(other), small_classes="drop"), "test")) == 1
    with pytest.raises(DataError, match=r"nothing\.csv does not exist: correct data\.val_path"):
        module(train, val_path=str(tmp_path / "nothing.csv"))
    with pytest.raises(DataError, match=r"data\.val_path and data\.test_path go with data\.path"):
        TextDataModule("mine", val_path=str(other))
    with pytest.raises(DataError, match=r"leave it out, or data\.test_path"):
        module(train, test_path=str(other), split="index%5")
    with other.open("a", encoding="utf-8") as file:
        file.write(",丙\n")
    with pytest.raises(DataError, match=r"b\.csv: column 'cat' is empty in 1 row\(s\), line\(s\) 4"):
        module(train, test_path=str(other))


def test_members_of_one_archive_are_the_splits(tmp_path: Path) -> None:
    rows = make_rows(300)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, part in {"train": rows[:200], "dev": rows[200:250], "test": rows[250:]}.items():
            text = "".join(f"{label}\t{review}\n" for label, review in [("cat", "review"), *part])
            archive.writestr(f"set/{name}.tsv", text)
    folder = tmp_path / "all.zip" / "set"
    data = module(folder / "train.tsv", val_path=str(folder / "dev.tsv"), test_path=str(folder / "test.tsv"))
    assert [len(described(data, split)) for split in SPLITS] == [200, 50, 50]
    assert data.report["files"]["val"]["sha256"] != data.report["files"]["test"]["sha256"]
    assert data.name == "train"


def test_the_same_bytes_under_another_name_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    content = "cat\treview,x\n" + "".join(f"{label}\t{review},x\n" for label, review in make_rows(60))
    for name in ("t.tsv", "t.csv"):
        (tmp_path / name).write_text(content, encoding="utf-8")
    module(tmp_path / "t.tsv", text_column="review,x")
    with pytest.raises(DataError, match="are missing"):
        module(tmp_path / "t.csv", text_column="review,x")


# --- classes ---


@pytest.mark.parametrize("rule", ["drop", "merge"])
def test_small_classes_are_left_out_or_made_one(rule: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*make_rows(60), ("少", "甲"), ("稀", "乙"), ("少", "丙")]
    path = write(tmp_path / "t.csv", rows)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        data = module(path, small_classes=rule)
        found = Counter(row["label"] for split in SPLITS for row in described(data, split))
        expected = Counter("other" if label in "少稀" else label for label, _ in rows)
        assert found == expected - (Counter(other=3) if rule == "drop" else Counter())
        assert data.report["small_classes"] == {"少": 2, "稀": 1}
        assert "{'少': 2, '稀': 1}" in caplog.text
    few = write(tmp_path / "few.csv", rows[:-1])
    with pytest.raises(DataError, match=r"too few rows of \{'少': 1, '稀': 1\}.*small_classes=drop") as told:
        module(few, small_classes="merge")
    assert "small_classes=merge" not in str(told.value)
    assert module(few, small_classes="drop").report["small_classes"] == {"少": 1, "稀": 1}


def test_a_class_that_only_another_file_has_can_be_left_out_and_not_merged(tmp_path: Path) -> None:
    rows = make_rows(300)
    train, val = write(tmp_path / "a.csv", rows[:200]), write(tmp_path / "b.csv", [*rows[200:250], ("D", "甲")])
    test = write(tmp_path / "c.csv", [*rows[250:], ("D", "乙"), ("D", "丙"), ("E", "丁")])
    own = {"val_path": str(val), "test_path": str(test)}
    message = (
        r"class 'D' occurs only in \S*b\.csv and \S*c\.csv: no model can learn it; class 'E' occurs only in \S*c\.csv: "
        r".* leave their 4 row\(s\) out with data\.small_classes=drop"
    )
    for rule in ("error", "merge"):
        for limit in (None, 100):
            with pytest.raises(DataError, match=message if limit is None else "class 'D' occurs only in") as told:
                module(train, **own, small_classes=rule, limit=limit)
            assert "small_classes=merge" not in str(told.value)
            assert "'other'" not in str(told.value)
    data = module(train, **own, small_classes="drop")
    assert [len(described(data, split)) for split in SPLITS] == [200, 50, 50]
    assert (sorted(data.facts["classes"]), data.report["small_classes"]) == (["类0", "类1"], {"D": 3, "E": 1})
    mended = write(tmp_path / "d.csv", [*rows[:200], ("D", "戊"), ("E", "己")])  # add rows
    assert [len(described(module(mended, **own), split)) for split in SPLITS] == [202, 51, 53]


def test_leaving_classes_out_is_not_offered_where_it_empties_a_file_or_leaves_one_class(tmp_path: Path) -> None:
    rows = make_rows(60)
    train, test = write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", [("D", "甲"), ("D", "乙")])
    single = write(tmp_path / "c.csv", [("类0", review) for _, review in rows])
    for path in (train, single):
        for rule in ("error", "drop", "merge"):
            with pytest.raises(
                DataError, match=r"class 'D' occurs only in \S*b\.csv: .*; correct the labels, add"
            ) as told:
                module(path, test_path=str(test), small_classes=rule)
            assert "small_classes" not in str(told.value)


def test_every_remedy_for_small_classes_that_is_told_helps(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    offered: Counter[str] = Counter()
    for trial in range(60):
        names = [*"ABCD", "other"]
        parts = {}
        for split in ("train", "val", "test")[: 1 + trial % 3]:
            counts = generator.choice([0, 0, 1, 2, 3, 30], len(names))
            rows = [(name, f"{split} {name} {i}") for name, n in zip(names, counts, strict=True) for i in range(n)]
            parts[split] = str(write(tmp_path / f"{split}{trial}.csv", rows or [("A", split)]))
        own = {f"{split}_path": path for split, path in parts.items() if split != "train"}
        fractions = {"val_fraction": 0.3, "test_fraction": 0.3}
        try:
            module(Path(parts["train"]), **own, **fractions)
            continue
        except DataError as error:
            told = str(error)
        for rule in ("drop", "merge"):
            if f"small_classes={rule}" in told:
                offered[rule] += 1
                try:
                    module(Path(parts["train"]), **own, **fractions, small_classes=rule)
                except DataError as error:  # few rows, many classes: not for the classes that are small
                    if "cannot draw" not in str(error):
                        raise
    assert min(offered[rule] for rule in ("drop", "merge")) > 5


@pytest.mark.parametrize("other", ["caf\u0065\u0301", "café\u200b", "\ufeffca\u00adfé"])
def test_classes_that_look_alike_are_warned_of_with_their_escapes(
    other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("caf\u00e9" if i % 3 else other, f"甲 {i}") for i in range(60)]
    module(write(tmp_path / "t.csv", [*rows, *make_rows(30)]))
    (warning,) = [record.getMessage() for record in caplog.records if "look alike" in record.getMessage()]
    assert r"'caf\xe9' (40 rows)" in warning
    assert f"{other.removeprefix(chr(0xFEFF))!a} (20 rows)" in warning


def test_kinds_of_blanks_at_the_ends_of_a_label_make_no_class_and_within_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(["a b", "a b ", "\u3000a b\u00a0", "c"][i % 4], f"甲 {i}") for i in range(60)]
    assert module(write(tmp_path / "t.csv", rows)).facts["classes"] == ["a b", "c"]
    assert "look alike" not in caplog.text
    module(write(tmp_path / "u.csv", [*rows, *[("a\u3000b", f"乙 {i}") for i in range(9)]]))
    assert r"'a\u3000b' (9 rows)" in caplog.text


@pytest.mark.parametrize(("empty", "outcome"), [(2, ""), (5, "warning"), (60, "error")])
def test_rows_without_a_text_are_a_warning_from_one_in_a_hundred_and_an_error_from_one_in_ten(
    tmp_path: Path, empty: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"文本{row}很好" * (row >= empty), "ab"[row % 2]) for row in range(300)]
    path = tmp_path / "t.csv"
    path.write_text("review,cat\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    message = rf"{empty} of 300 rows \(\d+%\) are lost: they have no text in column 'review'"
    if outcome == "error":
        with pytest.raises(DataError, match=rf"{message}.*data\.allow_loss=true"):
            TextDataModule("t", path=str(path), tokenizer="char", cache_dir=str(tmp_path), allow_loss=False).setup()
    caplog.clear()
    TextDataModule("t", path=str(path), tokenizer="char", cache_dir=str(tmp_path)).setup()
    warned = [record.getMessage() for record in caplog.records if "are lost" in record.getMessage()]
    assert len(warned) == bool(outcome)
    assert all(re.search(message, text) for text in warned)
