"""Readers of a dataset folder against naive loops."""

import numpy as np
import pytest
from helpers import SPLITS, pair_set, random_pairs, write_inter, write_txt

from data.formats import dataset_folder, inter_path, read_interactions
from utils import UserError
from world import Config


def assert_same_interactions(a, b):
    assert (a.n_users, a.n_items) == (b.n_users, b.n_items)
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(a, split), getattr(b, split))


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


def test_real_baby_reads_alike_in_both_formats(baby):
    from_txt, from_inter = read_interactions(baby, "txt"), read_interactions(baby, "inter")
    assert_same_interactions(from_txt, from_inter)
    assert (from_txt.n_users, from_txt.n_items) == (19445, 7050)
    assert sum(len(getattr(from_txt, split)) for split in SPLITS) == 160792


def test_auto_prefers_txt_and_data_format_decides(tmp_path):
    pairs, other = random_pairs(0, 10, 12, 3), random_pairs(1, 10, 12, 3)
    write_txt(tmp_path / "a", **pairs)
    write_inter(tmp_path / "a", **other)
    for data_format, written in (("auto", pairs), ("txt", pairs), ("inter", other)):
        assert pair_set(read_interactions(tmp_path / "a", data_format).train) == pair_set(written["train"])


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
def test_txt_layout_does_not_matter(tmp_path, train):
    for split, content in zip(SPLITS, (train, b"2 4\n", b"2 1\n")):
        (tmp_path / f"{split}.txt").write_bytes(content)
    data = read_interactions(tmp_path)
    assert data.train.tolist() == [[0, 1], [0, 2], [1, 3]]
    assert (data.n_users, data.n_items) == (3, 5)


def test_line_numbers_count_blank_lines(tmp_path):
    write_txt(tmp_path, **random_pairs(0, 10, 12, 3))
    (tmp_path / "valid.txt").write_text("0 1\n\n\n1 x\n")
    with pytest.raises(UserError, match=r"valid\.txt, line 4: 'x'"):
        read_interactions(tmp_path)


def test_line_numbers_of_inter_count_blank_lines(tmp_path):
    (tmp_path / "a.inter").write_text("userID\titemID\tx_label\n0\t1\t0\n\n\n0\tx\t1\n1\t1\t2\n")
    with pytest.raises(UserError, match=r"a\.inter, line 5: "):
        read_interactions(tmp_path)


def test_inter_with_crlf_line_ends_and_no_newline_at_the_end(tmp_path):
    (tmp_path / "a.inter").write_bytes(b"userID\titemID\tx_label\r\n0\t1\t0\r\n0\t2\t1\r\n1\t1\t2")
    data = read_interactions(tmp_path)
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([[0, 1]], [[0, 2]], [[1, 1]])


def test_duplicates_are_merged_and_counted(tmp_path):
    pairs = random_pairs(0, 10, 12, 3)
    again = {
        **pairs,
        "train": np.concatenate([pairs["train"], pairs["train"][:4], pairs["train"][:1]]),
        "test": np.concatenate([pairs["test"], pairs["test"][:2]]),
    }
    for write in (write_txt, write_inter):
        folder = tmp_path / write.__name__
        write(folder, **again)
        data = read_interactions(folder)
        assert data.merged == {"train": 5, "valid": 0, "test": 2}
        assert len(data.train) == len(pairs["train"]) and pair_set(data.train) == pair_set(pairs["train"])


def test_users_and_items_without_training_are_kept(tmp_path):
    write_txt(tmp_path, train=[(0, 0), (0, 1)], valid=[(3, 0)], test=[(1, 6)])
    data = read_interactions(tmp_path)
    assert (data.n_users, data.n_items) == (4, 7)
    assert data.valid.tolist() == [[3, 0]] and data.test.tolist() == [[1, 6]]


def test_feature_rows_extend_the_catalogue_and_never_shrink_it(tmp_path):
    write_txt(tmp_path, **random_pairs(0, 10, 12, 3))
    found = read_interactions(tmp_path)
    more = read_interactions(tmp_path, min_items=50, min_users=60)
    assert (more.n_users, more.n_items) == (60, 50)
    less = read_interactions(tmp_path, min_items=2, min_users=2)
    assert (less.n_users, less.n_items) == (found.n_users, found.n_items) == (10, 11)


def test_ratings_lie_beside_the_sorted_train_pairs(tmp_path):
    pairs = random_pairs(0, 10, 12, 3)
    everything = np.concatenate([pairs[split] for split in SPLITS])
    ratings = np.random.default_rng(0).integers(1, 6, len(everything)) / 2
    write_inter(tmp_path / "a", **pairs, ratings=ratings)
    data = read_interactions(tmp_path / "a")
    given = {(int(user), int(item)): rating for (user, item), rating in zip(everything, ratings)}
    assert data.train_rating.dtype == np.float32
    assert data.train_rating.tolist() == [given[tuple(pair)] for pair in data.train.tolist()]


@pytest.mark.parametrize("rating", ["0", "-1", "nan", "inf", "", "good", "1e39"])
def test_ratings_that_are_no_positive_float32_are_refused(tmp_path, rating):
    (tmp_path / "a.inter").write_text(
        f"userID\titemID\trating\tx_label\n0\t1\t5\t0\n0\t2\t{rating}\t0\n0\t3\t1\t1\n1\t1\t2\t2\n"
    )
    with pytest.raises(UserError, match=r"a\.inter, line 3: rating"):
        read_interactions(tmp_path)


def test_inter_columns_may_stand_in_any_order_and_others_are_ignored(tmp_path):
    (tmp_path / "a.inter").write_text(
        'x_label\tnote\titemID\trating\tuserID\n0\thi "there\t4\t2.5\t1\n1\t\t3\t1\t0\n2\tb\t2\t1\t0\n'
    )
    data = read_interactions(tmp_path)
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([[1, 4]], [[0, 3]], [[0, 2]])
    assert data.train_rating.tolist() == [2.5]


def test_inter_table_is_named_after_its_folder_or_the_only_one(tmp_path):
    folder = tmp_path / "shop_raw"
    folder.mkdir()
    (folder / "other.inter").touch()
    assert inter_path(folder) == folder / "other.inter"
    (folder / "shop.inter").touch()
    assert inter_path(folder) == folder / "shop.inter"
    (folder / "shop.inter").rename(folder / "third.inter")
    with pytest.raises(UserError, match="2 .inter tables"):
        inter_path(folder)


def test_dataset_folder_falls_back_to_raw_with_a_note(tmp_path):
    (tmp_path / "shop_raw").mkdir()
    config = Config(dataset="shop", data_root=str(tmp_path))
    folder, note = dataset_folder(config)
    assert folder == tmp_path / "shop_raw" and note.startswith("note: ") and "shop_raw" in note
    (tmp_path / "shop").mkdir()
    assert dataset_folder(config) == (tmp_path / "shop", None)


def test_a_user_who_has_every_item_is_refused(tmp_path):
    write_txt(tmp_path, train=[(0, 0), (0, 1), (0, 2), (1, 0)], valid=[(1, 1)], test=[(1, 2)])
    with pytest.raises(UserError, match="no negative to draw"):
        read_interactions(tmp_path)
    assert read_interactions(tmp_path, min_items=4).n_items == 4
