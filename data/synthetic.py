"""Make a small synthetic multimodal dataset with planted structure and a known ranking of models.

    python -m data.synthetic demo                    # writes data/demo/ in seconds
    python -m data.synthetic other --seed 7 --users 3000 --items 1500

Model of the data (all draws from one seed):
  items         belong to topics; the factor vector of an item is its topic's centre plus a deviation, on the
                unit sphere. Popularity is log-normal and independent of the topic, so most items are in the
                long tail.
  users         mix two topics; their preference vector lives in the same factor space.
  interactions  are drawn without replacement from softmax(sharpness * preference . factors + popularity).
  text          is a noisy, mildly non-linear map of the first factors, plus dimensions of pure noise.
  image         is a noisier map of the last factors (some shared with text), plus more noise dimensions.

Expected ranking at an equal number of epochs:
  MF < LightGCN       A user has four train items on average, and half the items have about five users or
                      fewer. MF updates a vector only by its own interactions; LightGCN also averages over
                      users and items a few hops away, which mostly share its topics. Long training at a small
                      learning rate narrows the gap.
  LightGCN < RecGOAT  A tail or cold item has few or no paths in the interaction graph, but its features place
                      it among the items of its topic, and attention over feature neighbours averages their
                      noise out.
Popularity is moderate on purpose: RecGOAT ranks by direction alone (its item vectors have length 1), which
expresses popularity less well than the norm of an ID vector. Strong popularity would measure that instead of
the use of content.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from cli import Parser, run_tool
from utils import UserError, atomic_write, remove_leftovers, write_json, write_text


class FeatureSettings(TypedDict):
    """Arguments of draw_features."""

    dims: int
    n_noise_dims: int
    noise: float


# Dimensions of the latent space, and those visible in each modality; 8..11 are in both.
FACTORS = 16
TEXT_FACTORS, IMAGE_FACTORS = slice(0, 12), slice(8, 16)
TOPICS = 160
# Deviation of an item from its topic's centre, and of a user from the mix of two, relative to its length.
ITEM_SPREAD, USER_SPREAD = 0.6, 0.4
# How strongly users prefer matching items; at 0 they follow popularity alone.
SHARPNESS = 11.0
# Standard deviation of log popularity.
POPULARITY = 0.8
TEXT: FeatureSettings = {"dims": 96, "n_noise_dims": 32, "noise": 0.5}
IMAGE: FeatureSettings = {"dims": 128, "n_noise_dims": 64, "noise": 1.0}
# File of the settings; a folder that has it may be overwritten.
MARK = "synthetic.json"
# What may be in an old folder, the interactions first: files of this tool, and what others made of them.
OLD_FILES = (
    "train.txt",
    "*.inter",
    "text_feat.npy",
    "image_feat.npy",
    "audio_feat.npy",
    "user_text_feat.npy",
    "features.json",
    "item_text.jsonl",
    "user_profiles.jsonl*",
    "user_prompts.jsonl",
)


class SyntheticDataset(TypedDict):
    """What a dataset folder holds."""

    # {split: item ids of each user}
    splits: dict[str, list[np.ndarray]]
    # {modality: [items, dims] float32}
    features: dict[str, np.ndarray]
    # [items] int64
    topic: np.ndarray


# ---------------------------------------------------------------- draws


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of x scaled to length 1: [n, d] -> [n, d]."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draw_items(
    rng: np.random.Generator, items: int, topics: int, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Topics [items] int64, factors [items, FACTORS] on the unit sphere, and topic centres [topics, FACTORS].

    spread: length of an item's deviation relative to its topic's centre.
    """
    centres = unit(rng.standard_normal((topics, FACTORS)))
    topic = rng.integers(topics, size=items)
    return topic, unit(centres[topic] + spread * unit(rng.standard_normal((items, FACTORS)))), centres


def draw_users(rng: np.random.Generator, users: int, centres: np.ndarray, spread: float) -> np.ndarray:
    """Preferences [users, FACTORS] on the unit sphere: a random mix of two topics plus a deviation."""
    # Two distinct topics per user.
    topic = np.argsort(rng.random((users, len(centres))), axis=1)[:, :2]
    share = rng.uniform(0.3, 0.7, users)[:, None]
    mix = unit(share * centres[topic[:, 0]] + (1 - share) * centres[topic[:, 1]])
    return unit(mix + spread * unit(rng.standard_normal(mix.shape)))


def draw_interactions(
    rng: np.random.Generator,
    preference: np.ndarray,
    factors: np.ndarray,
    popularity: np.ndarray,
    sharpness: float,
    per_user: float,
) -> list[np.ndarray]:
    """Distinct items of each user, as int64 arrays in random order.

    Drawn without replacement from softmax(sharpness * preference . factors + popularity) by the Gumbel top-k
    trick. Their number is 3 + Poisson(per_user - 3), at most a third of the catalogue.
    """
    counts = np.minimum(3 + rng.poisson(per_user - 3, len(preference)), len(factors) // 3)
    score = sharpness * preference @ factors.T + popularity + rng.gumbel(size=(len(preference), len(factors)))
    order = np.argsort(-score, axis=1)
    return [rng.permutation(row[:n]) for row, n in zip(order, counts)]


def split_items(items_of: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Split each user's items 8:1:1, with at least one item in valid and in test.

    items_of: at least 3 items of each user. Returns {split: items of each user}.
    """
    n_held_out = [max(1, round(len(items) / 10)) for items in items_of]
    return {
        "train": [items[2 * n :] for items, n in zip(items_of, n_held_out)],
        "valid": [items[:n] for items, n in zip(items_of, n_held_out)],
        "test": [items[n : 2 * n] for items, n in zip(items_of, n_held_out)],
    }


def draw_features(
    rng: np.random.Generator, factors: np.ndarray, dims: int, n_noise_dims: int, noise: float
) -> np.ndarray:
    """Features [items, dims] float32: tanh of a random linear map of the factors, plus noise.

    factors: [items, f] of about unit length; n_noise_dims: how many of the dims are pure noise; noise: its
    standard deviation, where that of the signal is about 1.
    """
    f = factors.shape[1]
    signal = np.tanh(factors / factors.std() @ rng.standard_normal((f, dims - n_noise_dims)) / np.sqrt(f))
    signal = np.concatenate([signal / signal.std(), np.zeros((len(factors), n_noise_dims))], axis=1)
    return (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)


def make_dataset(users: int, items: int, interactions_per_user: float, seed: int) -> SyntheticDataset:
    """Draw a dataset; the same arguments give the same dataset.

    users, items: counts; interactions_per_user: mean over users; seed: integer from 0.
    Raises UserError if the counts are too small or too large.
    """
    check_sizes(users, items, interactions_per_user, seed)
    rng = np.random.default_rng(seed)
    topic, factors, centres = draw_items(rng, items, TOPICS, ITEM_SPREAD)
    preference = draw_users(rng, users, centres, USER_SPREAD)
    popularity = POPULARITY * rng.standard_normal(items)
    chosen = draw_interactions(rng, preference, factors, popularity, SHARPNESS, interactions_per_user)
    features = {
        "text": draw_features(rng, factors[:, TEXT_FACTORS], **TEXT),
        "image": draw_features(rng, factors[:, IMAGE_FACTORS], **IMAGE),
    }
    return {"splits": split_items(chosen), "features": features, "topic": topic}


def check_sizes(users: int, items: int, interactions_per_user: float, seed: int) -> None:
    """Raise UserError unless a dataset can be drawn with these arguments."""
    for flag, value, low in (
        ("--users", users, 1),
        ("--items", items, 30),
        ("--interactions-per-user", interactions_per_user, 3),
        ("--seed", seed, 0),
    ):
        # "not >=" also catches NaN.
        if not value >= low:
            raise UserError(f"{flag} {value}: must be at least {low}")
    if interactions_per_user > items / 6:
        raise UserError(
            f"--interactions-per-user {interactions_per_user}: must be at most a sixth of --items {items}, "
            "so that enough items are left to rank"
        )
    if users * items > 10**8:
        raise UserError(f"--users {users} --items {items}: more than 10^8 user-item scores; reduce either")


# ---------------------------------------------------------------- the folder


def write_dataset(folder: str | Path, dataset: SyntheticDataset, settings: dict[str, Any]) -> None:
    """Write a dataset folder: the three .txt files, text and image features, item_ids.tsv and user_ids.tsv.

    An older dataset of this tool is removed, with what other tools have made of it.
    settings: kept in synthetic.json. Raises UserError if the folder holds files of another origin, or cannot
    be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if not (folder / MARK).exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: was not made by this tool; give another NAME, or remove it")
        # Removed first, and train.txt written last: without interactions, as after a kill, it is no dataset.
        for pattern in OLD_FILES:
            for path in folder.glob(pattern):
                path.unlink()
        write_json(folder / MARK, settings)
        for modality, matrix in dataset["features"].items():
            with atomic_write(folder / f"{modality}_feat.npy") as file:
                np.save(file, matrix)
        users = len(dataset["splits"]["train"])
        write_text(folder / "user_ids.tsv", "".join(f"{user}\tuser{user}\n" for user in range(users)))
        items = (f"{item}\titem{item}-topic{topic}\n" for item, topic in enumerate(dataset["topic"]))
        write_text(folder / "item_ids.tsv", "".join(items))
        for split in ("test", "valid", "train"):
            rows = enumerate(dataset["splits"][split])
            lines = (f"{user} {' '.join(map(str, items))}\n" for user, items in rows)
            write_text(folder / f"{split}.txt", "".join(lines))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another place") from None


def summary(folder: Path, dataset: SyntheticDataset) -> str:
    """One line that describes the folder."""
    splits = {split: np.concatenate(rows) for split, rows in dataset["splits"].items()}
    degree = np.bincount(splits["train"], minlength=len(dataset["topic"]))
    features = ", ".join(f"{m} {matrix.shape[1]}" for m, matrix in dataset["features"].items())
    n_users, n_topics = len(dataset["splits"]["train"]), len(np.unique(dataset["topic"]))
    sizes = " / ".join(str(len(items)) for items in splits.values())
    return (
        f"{folder}: {n_users} users, {len(degree)} items in {n_topics} topics, {sizes} interactions "
        f"(train / valid / test); train users per item: median {np.median(degree):.0f}, max {degree.max()}, "
        f"none for {(degree == 0).sum()} items; feature dimensions: {features}"
    )


# ---------------------------------------------------------------- command line


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m data.synthetic",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Make a dataset folder <data_root>/<NAME>/ with planted structure: users and items share "
        "latent factors, and text and image features are noisy functions of them. The same flags give the "
        "same files.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="name of the dataset folder; one made earlier by this tool is replaced"
    )
    parser.add_argument("--users", type=int, default=4000, metavar="N", help="number of users")
    parser.add_argument("--items", type=int, default=2500, metavar="N", help="number of items")
    parser.add_argument(
        "--interactions-per-user",
        "--interactions_per_user",
        type=float,
        default=6.0,
        metavar="X",
        help="mean number of interactions per user, over all splits (3 + Poisson)",
    )
    parser.add_argument("--seed", type=int, default=2025, metavar="N", help="random seed")
    parser.add_argument(
        "--data_root", default="data", metavar="DIR", help="folder that holds the dataset folders"
    )
    return parser


def command(args: argparse.Namespace) -> None:
    """Make a dataset folder and print a line."""
    if args.name in ("", "..", ".") or Path(args.name).name != args.name:
        raise UserError(f"NAME '{args.name}': give a plain folder name; --data_root names its parent")
    settings = {key: getattr(args, key) for key in ("users", "items", "interactions_per_user", "seed")}
    dataset = make_dataset(**settings)
    folder = Path(args.data_root) / args.name
    write_dataset(folder, dataset, settings)
    print(summary(folder, dataset))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
