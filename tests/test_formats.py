"""Readers of a dataset folder, compared with the pairs that were written."""

import shlex

import numpy as np
import pytest
from helpers import SPLITS, pair_set, random_pairs, write_inter, write_txt

from data.folders import check_first_line, dataset_folder, find_inter_table, inter_path
from data.formats import (
    names_of,
    read_ids,
    read_interactions,
    read_lines,
    read_titles,
)
from utils import UserError
from world import Config


def assert_same_interactions(a, b):
    assert (a.n_users, a.n_items) == (b.n_users, b.n_items)
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(a, split), getattr(b, split))


# ---------------------------------------------------------------- dataset folder


def test_dataset_folder_falls_back_to_raw_with_a_note(tmp_path):
    (tmp_path / "shop_raw").mkdir()
    config = Config(dataset="shop", data_root=str(tmp_path))
    folder, note = dataset_folder(config)
    assert folder == tmp_path / "shop_raw"
    assert note.startswith("note: ") and "shop_raw" in note
    (tmp_path / "shop").mkdir()
    assert dataset_folder(config) == (tmp_path / "shop", None)


def test_inter_path_is_the_table_named_after_the_folder_or_the_only_one(tmp_path):
    folder = tmp_path / "shop_raw"
    folder.mkdir()
    (folder / "other.inter").touch()
    assert inter_path(folder) == folder / "other.inter"
    (folder / "shop.inter").touch()
    assert inter_path(folder) == folder / "shop.inter"
    (folder / "shop.inter").rename(folder / "third.inter")
    with pytest.raises(UserError, match=r"2 \.inter tables"):
        inter_path(folder)


def test_the_table_to_read_follows_from_the_format_and_the_files(tmp_path):
    table = tmp_path / "shop.inter"
    with pytest.raises(UserError, match="neither"):
        find_inter_table(tmp_path)
    table.touch()
    assert find_inter_table(tmp_path) == find_inter_table(tmp_path, "inter") == table
    assert find_inter_table(tmp_path, "txt") is None
    (tmp_path / "train.txt").touch()
    assert find_inter_table(tmp_path) is None and find_inter_table(tmp_path, "inter") == table


def test_a_byte_order_mark_before_the_header_is_ignored(tmp_path):
    write_inter(tmp_path / "shop", **random_pairs(3, 40, 30, 6))
    path = tmp_path / "shop" / "shop.inter"
    plain = read_interactions(path.parent)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    check_first_line(path)
    assert_same_interactions(read_interactions(path.parent), plain)


def test_the_command_for_a_foreign_table_is_quoted(tmp_path):
    path = tmp_path / "my data" / "the shop" / "my table.inter"
    path.parent.mkdir(parents=True)
    path.write_text("user_id:token\titem\ttime\n")
    with pytest.raises(UserError) as error:
        check_first_line(path)
    words = shlex.split(str(error.value).partition("python -m data.prepare ")[2])
    flags = ["--interactions", path, "--user_column", "user_id:token", "--item_column", "item"]
    expected = ["the shop_split", "--data_root", tmp_path / "my data", *flags, "--time_column", "time"]
    assert words == list(map(str, expected))


# ---------------------------------------------------------------- both formats


def test_both_formats_give_the_pairs_that_were_written(tmp_path):
    pairs = random_pairs(3, 40, 30, 6)
    write_txt(tmp_path / "a", **pairs)
    write_inter(tmp_path / "b", **pairs)
    from_txt, from_inter = read_interactions(tmp_path / "a"), read_interactions(tmp_path / "b")
    assert_same_interactions(from_txt, from_inter)
    for split in SPLITS:
        assert [tuple(pair) for pair in getattr(from_txt, split)] == sorted(pair_set(pairs[split]))
        assert getattr(from_txt, split).dtype == np.int64
    assert from_txt.train_rating is None and from_inter.train_rating is None
    assert "a/{train,valid,test}.txt" in from_txt.source and "b.inter" in from_inter.source


def test_both_formats_of_baby_are_equal(baby):
    from_txt, from_inter = read_interactions(baby, "txt"), read_interactions(baby, "inter")
    assert_same_interactions(from_txt, from_inter)
    assert (from_txt.n_users, from_txt.n_items) == (19445, 7050)
    assert sum(len(getattr(from_txt, split)) for split in SPLITS) == 160792


def test_auto_prefers_txt_and_data_format_overrides_it(tmp_path):
    pairs, other = random_pairs(0, 10, 12, 3), random_pairs(1, 10, 12, 3)
    write_txt(tmp_path / "a", **pairs)
    write_inter(tmp_path / "a", **other)
    for data_format, written in (("auto", pairs), ("txt", pairs), ("inter", other)):
        assert pair_set(read_interactions(tmp_path / "a", data_format).train) == pair_set(written["train"])


@pytest.mark.parametrize("write", [write_txt, write_inter])
def test_repeated_pairs_are_merged_and_counted(tmp_path, write):
    pairs = random_pairs(0, 10, 12, 3)
    with_repetitions = {
        **pairs,
        "train": np.concatenate([pairs["train"], pairs["train"][:4], pairs["train"][:1]]),
        "test": np.concatenate([pairs["test"], pairs["test"][:2]]),
    }
    write(tmp_path, **with_repetitions)
    data = read_interactions(tmp_path)
    assert data.merged == {"train": 5, "valid": 0, "test": 2}
    assert len(data.train) == len(pairs["train"]) and pair_set(data.train) == pair_set(pairs["train"])


def test_users_and_items_without_training_pairs_are_kept(tmp_path):
    write_txt(tmp_path, train=[(0, 0), (0, 1)], valid=[(3, 0)], test=[(1, 6)])
    data = read_interactions(tmp_path)
    assert (data.n_users, data.n_items) == (4, 7)
    assert data.valid.tolist() == [[3, 0]] and data.test.tolist() == [[1, 6]]


def test_min_items_and_min_users_extend_the_catalogue_but_never_shrink_it(tmp_path):
    write_txt(tmp_path, **random_pairs(0, 10, 12, 3))
    unbounded = read_interactions(tmp_path)
    larger = read_interactions(tmp_path, min_items=50, min_users=60)
    assert (larger.n_users, larger.n_items) == (60, 50)
    smaller = read_interactions(tmp_path, min_items=2, min_users=2)
    assert (smaller.n_users, smaller.n_items) == (unbounded.n_users, unbounded.n_items) == (10, 11)


def test_a_user_with_every_item_is_refused(tmp_path):
    write_txt(tmp_path, train=[(0, 0), (0, 1), (0, 2), (1, 0)], valid=[(1, 1)], test=[(1, 2)])
    with pytest.raises(UserError, match=r"train\.txt, line 1: user 0 has all 3 items in train"):
        read_interactions(tmp_path)
    assert read_interactions(tmp_path, min_items=4).n_items == 4


# ---------------------------------------------------------------- .txt


@pytest.mark.parametrize(
    "train",
    [
        b"0 1 2\r\n1 3\r\n",
        b"0 1 2\n1 3",
        b"\n0 1 2\n\n\n1 3\n\n",
        b"0 1 2\n1 3\n2\n",
        b" 0  1\t2 \n1 3 \n",
        b"1 3\n0 2\n0 1\n",
    ],
)
def test_txt_may_have_any_line_ends_blanks_and_order(tmp_path, train):
    for split, content in zip(SPLITS, (train, b"2 4\n", b"2 1\n"), strict=True):
        (tmp_path / f"{split}.txt").write_bytes(content)
    data = read_interactions(tmp_path)
    assert data.train.tolist() == [[0, 1], [0, 2], [1, 3]]
    assert (data.n_users, data.n_items) == (3, 5)


def test_blank_lines_count_in_line_numbers_of_txt(tmp_path):
    write_txt(tmp_path, **random_pairs(0, 10, 12, 3))
    (tmp_path / "valid.txt").write_text("0 1\n\n\n1 x\n")
    with pytest.raises(UserError, match=r"valid\.txt, line 4: 'x'"):
        read_interactions(tmp_path)


# ---------------------------------------------------------------- .inter


def write_table(folder, text):
    (folder / "a.inter").write_text(text)


def test_blank_lines_count_in_line_numbers_of_inter(tmp_path):
    write_table(tmp_path, "userID\titemID\tx_label\n0\t1\t0\n\n\n0\tx\t1\n1\t1\t2\n")
    with pytest.raises(UserError, match=r"a\.inter, line 5: "):
        read_interactions(tmp_path)


def test_inter_may_have_crlf_and_no_newline_at_the_end(tmp_path):
    (tmp_path / "a.inter").write_bytes(b"userID\titemID\tx_label\r\n0\t1\t0\r\n0\t2\t1\r\n1\t1\t2")
    data = read_interactions(tmp_path)
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([[0, 1]], [[0, 2]], [[1, 1]])


def test_inter_columns_may_be_in_any_order_and_others_are_ignored(tmp_path):
    write_table(
        tmp_path,
        'x_label\tnote\titemID\trating\tuserID\n0\thi "there\t4\t2.5\t1\n1\t\t3\t1\t0\n2\tb\t2\t1\t0\n',
    )
    data = read_interactions(tmp_path)
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([[1, 4]], [[0, 3]], [[0, 2]])
    assert data.train_rating.tolist() == [2.5]


@pytest.mark.parametrize("repeated", ["userID", "itemID", "rating", "x_label", "note"])
def test_inter_columns_must_have_different_names(tmp_path, repeated):
    names = ["userID", "itemID", "rating", "x_label", "note"]
    rows = [["0", "1", "3", "0", "a"], ["0", "2", "3", "1", "b"], ["1", "1", "3", "2", "c"]]
    lines = [[*names, repeated], *([*row, row[names.index(repeated)]] for row in rows)]
    write_table(tmp_path, "\n".join(map("\t".join, lines)) + "\n")
    with pytest.raises(UserError, match=rf"a\.inter, line 1: the header repeats {repeated};"):
        read_interactions(tmp_path)


def test_inter_columns_without_a_name_are_ignored(tmp_path):
    write_table(tmp_path, "userID\titemID\tx_label\t\t\n0\t1\t0\t\t7\n0\t2\t1\t\t\n1\t1\t2\t\t\n")
    data = read_interactions(tmp_path)
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([[0, 1]], [[0, 2]], [[1, 1]])


def test_ratings_are_aligned_with_the_sorted_train_pairs(tmp_path):
    pairs = random_pairs(0, 10, 12, 3)
    everything = np.concatenate([pairs[split] for split in SPLITS])
    ratings = np.random.default_rng(0).integers(1, 6, len(everything)) / 2
    write_inter(tmp_path / "a", **pairs, ratings=ratings)
    data = read_interactions(tmp_path / "a")
    expected = {
        (int(user), int(item)): rating for (user, item), rating in zip(everything, ratings, strict=True)
    }
    assert data.train_rating.dtype == np.float32
    assert data.train_rating.tolist() == [expected[tuple(pair)] for pair in data.train.tolist()]


@pytest.mark.parametrize("rating", ["0", "-1", "nan", "inf", "", "good", "1e39"])
def test_ratings_must_be_positive_in_float32(tmp_path, rating):
    write_table(
        tmp_path,
        f"userID\titemID\trating\tx_label\n0\t1\t5\t0\n0\t2\t{rating}\t0\n0\t3\t1\t1\n1\t1\t2\t2\n",
    )
    with pytest.raises(UserError, match=r"a\.inter, line 3: rating"):
        read_interactions(tmp_path)


# ---------------------------------------------------------------- ids and titles


def test_id_map_lists_original_ids_in_order(tmp_path):
    path = tmp_path / "item_ids.tsv"
    assert read_ids(path) is None
    assert names_of(path, 3, "items") == ["0", "1", "2"]
    path.write_text("0\tB1\n1\tb 2\n2\t\u00e9\n")
    assert read_ids(path) == names_of(path, 3, "items") == ["B1", "b 2", "\u00e9"]
    with pytest.raises(UserError, match=r"item_ids\.tsv: names 3 items for 4"):
        names_of(path, 4, "items")


@pytest.mark.parametrize(
    "content, message",
    [
        ("0\ta\n2\tb\n", "line 2: must be '1', a tab"),
        ("0\ta\n1 b\n", "line 2: must be '1', a tab"),
        ("0\ta\n1\t\n", "line 2: must be '1', a tab"),
        ("0\ta\n1\tb\tc\n", "line 2: must be '1', a tab"),
        ("0\ta\n1\tb\n2\ta\n", "line 3: the id 'a' is on line 1 already"),
        (b"0\t\xff\n", "cannot be read .not UTF-8."),
    ],
)
def test_invalid_id_maps_are_refused(tmp_path, content, message):
    path = tmp_path / "user_ids.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"user_ids.tsv.*{message}"):
        read_ids(path)


def test_titles_are_read_by_item_and_empty_where_missing(tmp_path):
    path = tmp_path / "item_text.jsonl"
    assert read_titles(path, 3) is None
    path.write_text('{"item": 2, "title": " red\\n shoe "}\n{"item": 0, "brand": "x"}\n')
    assert read_titles(path, 3) == ["", "", "red shoe"]


@pytest.mark.parametrize(
    "line",
    [
        '{"item": 3}',
        '{"item": -1}',
        '{"item": true}',
        '{"item": 0, "title": 5}',
        "{}",
        "[0]",
        "no",
        "[" * 10**5,
    ],
)
def test_invalid_titles_are_refused(tmp_path, line):
    path = tmp_path / "item_text.jsonl"
    path.write_text(f'{{"item": 0, "title": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=r"item_text\.jsonl, line 2: must be .* number below 3"):
        read_titles(path, 3)


def test_read_lines_returns_lines_and_names_the_byte_that_is_not_utf8(tmp_path):
    path = tmp_path / "users.txt"
    with pytest.raises(UserError, match=r"users\.txt: cannot be read"):
        read_lines(path)
    path.write_text("a\n\nb c\n")
    assert read_lines(path) == ["a", "", "b c"]
    path.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"not UTF-8 .* at byte 2"):
        read_lines(path)
