"""Make a synthetic multimodal dataset with planted structure: small, quick to train on, and with a known right order.

    python -m data.synthetic demo                    # writes data/demo/ in seconds
    python -m data.synthetic other --seed 7 --users 3000 --items 1500

How the data come about (all draws from one seed):
  items         belong to topics; an item's factor vector is its topic's centre plus a deviation of its own, on the unit
                sphere. Popularity is log-normal and independent of the topic, so most items are in the tail.
  users         mix two topics; their preference vector lives in the same factor space.
  interactions  drawn without replacement from softmax(sharpness * preference . factors + popularity).
  text          a noisy, mildly non-linear map of the first factors, beside dimensions that mean nothing.
  image         a noisier map of the last factors (some of them shared with text), beside more such dimensions.

Why the models should come out in order at an equal budget of epochs:
  MF < LightGCN       A user has four training items on average, and half the items have about five users or fewer. MF
                      moves a vector by its own interactions only; a LightGCN vector also averages over the users and
                      items a few hops away, which share its topics more often than not. A long training with a small
                      learning rate lets MF make up much of the difference.
  LightGCN < RecGOAT  A tail or cold item has few paths or none in the interaction graph, but its features place it among
                      the items of its topic, and attention over feature neighbours averages their noise away.
Popularity is kept moderate: RecGOAT ranks by direction alone (its item vectors have length 1), which tells popularity
less well than the norm of an ID vector, so a dataset ruled by popularity would show that and not the use of content.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from cli import Parser, run_tool
from utils import UserError, atomic_write, write_text

FACTORS = 16  # dimensions of the latent space
TEXT_FACTORS = slice(0, 12)  # what the text tells of them
IMAGE_FACTORS = slice(8, 16)  # what the image tells of them; 8..11 are in both
TOPICS = 160
ITEM_SPREAD, USER_SPREAD = (
    0.6,
    0.4,
)  # deviation from the topic centre, or from the mix of two, relative to its length
SHARPNESS = 11.0  # of a user's choice: 0 follows popularity alone
POPULARITY = 0.8  # standard deviation of log popularity
TEXT = dict(dims=96, nuisance=32, noise=0.5)
IMAGE = dict(dims=128, nuisance=64, noise=1.0)
MARK = "synthetic.json"  # the settings; its presence says that the folder may be written again


# ---------------------------------------------------------------- the planted world


def unit(x):
    """Rows of x scaled to length 1: [n, d] -> [n, d]."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draw_items(rng, items, topics, spread):
    """Topic of each item [I] int64, factors [I, F] on the unit sphere, and topic centres [topics, F].

    spread: length of an item's own deviation relative to its topic's centre.
    """
    centres = unit(rng.standard_normal((topics, FACTORS)))
    topic = rng.integers(topics, size=items)
    return topic, unit(centres[topic] + spread * unit(rng.standard_normal((items, FACTORS)))), centres


def draw_users(rng, users, centres, spread):
    """Preference vectors [U, F] on the unit sphere: a random mix of two topics, and a deviation as in draw_items."""
    topic = np.argsort(rng.random((users, len(centres))), axis=1)[:, :2]  # [U, 2], distinct
    share = rng.uniform(0.3, 0.7, users)[:, None]
    mix = unit(share * centres[topic[:, 0]] + (1 - share) * centres[topic[:, 1]])
    return unit(mix + spread * unit(rng.standard_normal(mix.shape)))


def draw_interactions(rng, preference, factors, popularity, sharpness, per_user):
    """Items of each user, a list of U int64 arrays without repeats, in random order.

    Drawn without replacement from softmax(sharpness * preference . factors + popularity) by the Gumbel top-k trick;
    the number is 3 + Poisson(per_user - 3), at most a third of the catalogue.
    """
    counts = np.minimum(3 + rng.poisson(per_user - 3, len(preference)), len(factors) // 3)
    score = sharpness * preference @ factors.T + popularity + rng.gumbel(size=(len(preference), len(factors)))
    order = np.argsort(-score, axis=1)
    return [rng.permutation(row[:n]) for row, n in zip(order, counts)]


def split_items(items_of):
    """8:1:1 per user, with one valid and one test item at the least. items_of: U arrays of >= 3 -> {split: U arrays}."""
    held = [max(1, round(len(items) / 10)) for items in items_of]
    return {
        "train": [items[2 * n :] for items, n in zip(items_of, held)],
        "valid": [items[:n] for items, n in zip(items_of, held)],
        "test": [items[n : 2 * n] for items, n in zip(items_of, held)],
    }


def draw_features(rng, factors, dims, nuisance, noise):
    """Features [I, dims] float32: tanh of a random linear map of the factors, plus noise, beside meaningless dimensions.

    factors: [I, f] of about unit length; nuisance: how many of the dims are noise alone; noise: its standard deviation,
    where the signal's is about 1.
    """
    told = dims - nuisance
    signal = np.tanh(
        factors / factors.std() @ rng.standard_normal((factors.shape[1], told)) / np.sqrt(factors.shape[1])
    )
    signal = np.concatenate([signal / signal.std(), np.zeros((len(factors), nuisance))], axis=1)
    return (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)


def make_dataset(users, items, interactions_per_user, seed):
    """Everything a dataset folder holds, the same for the same arguments.

    users, items: counts; interactions_per_user: mean over users; seed: integer from 0.
    Returns {"splits": {split: U int64 arrays of item ids}, "features": {modality: [I, dims] float32}, "topic": [I] int64}.
    Raises UserError if the counts are too small to mean anything.
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


def check_sizes(users, items, interactions_per_user, seed):
    """Raise UserError unless a dataset can be drawn with these."""
    for flag, value, least in (
        ("--users", users, 1),
        ("--items", items, 30),
        ("--interactions-per-user", interactions_per_user, 3),
        ("--seed", seed, 0),
    ):
        if not value >= least:  # "not >=" also catches NaN
            raise UserError(f"{flag} {value}: must be at least {least}")
    if interactions_per_user > items / 6:
        raise UserError(
            f"--interactions-per-user {interactions_per_user}: at most a sixth of --items {items}, so that there is "
            "something left to rank"
        )
    if users * items > 10**8:
        raise UserError(
            f"--users {users} --items {items}: more than 10^8 user-item scores to draw from; make either smaller"
        )


# ---------------------------------------------------------------- the folder


def write_dataset(folder, dataset, settings):
    """Write a dataset folder: train/valid/test.txt, text_feat.npy, image_feat.npy, item_ids.tsv, user_ids.tsv.

    settings: dict, kept in synthetic.json. Raises UserError if the folder holds something that was not made here, or
    cannot be written.
    """
    folder = Path(folder)
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
            raise UserError(
                f"{folder}: exists and was not made by this tool; give another NAME, or remove it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MARK, json.dumps(settings, indent=1) + "\n")
        for split, rows in dataset["splits"].items():
            write_text(
                folder / f"{split}.txt",
                "".join(f"{user} {' '.join(map(str, row))}\n" for user, row in enumerate(rows)),
            )
        for modality, matrix in dataset["features"].items():
            with atomic_write(folder / f"{modality}_feat.npy") as file:
                np.save(file, matrix)
        users = len(dataset["splits"]["train"])
        write_text(folder / "user_ids.tsv", "".join(f"{user}\tuser{user}\n" for user in range(users)))
        write_text(
            folder / "item_ids.tsv",
            "".join(f"{item}\titem{item}-topic{topic}\n" for item, topic in enumerate(dataset["topic"])),
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def summary(folder, dataset):
    """One line: what the folder now holds."""
    splits = {split: np.concatenate(rows) for split, rows in dataset["splits"].items()}
    degree = np.bincount(splits["train"], minlength=len(dataset["topic"]))
    features = ", ".join(f"{m} {matrix.shape[1]}" for m, matrix in dataset["features"].items())
    return (
        f"{folder}: {len(dataset['splits']['train'])} users, {len(degree)} items in {len(np.unique(dataset['topic']))} topics, "
        f"{' / '.join(str(len(items)) for items in splits.values())} interactions (train / valid / test); train users an item: "
        f"median {np.median(degree):.0f}, most {degree.max()}, none for {(degree == 0).sum()} items; feature dimensions: {features}"
    )


# ---------------------------------------------------------------- command line


def make_parser():
    """The flags, with their defaults."""
    parser = Parser(
        prog="python -m data.synthetic",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Make a dataset folder <data_root>/<NAME>/ with planted structure: users and items share latent "
        "factors, text and image features tell of them with noise. Same flags, same files.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="name of the dataset folder; one made earlier by this tool is replaced"
    )
    parser.add_argument("--users", type=int, default=4000, metavar="N", help="users")
    parser.add_argument("--items", type=int, default=2500, metavar="N", help="items")
    parser.add_argument(
        "--interactions-per-user",
        "--interactions_per_user",
        type=float,
        default=6.0,
        metavar="X",
        help="mean number of interactions a user, over all splits (3 + Poisson)",
    )
    parser.add_argument("--seed", type=int, default=2025, metavar="N", help="seed of every draw")
    parser.add_argument(
        "--data_root", default="data", metavar="DIR", help="folder that holds the dataset folders"
    )
    return parser


def command(args):
    """Make the dataset folder that parsed arguments ask for, and say what it holds."""
    if args.name in ("", "..", ".") or Path(args.name).name != args.name:
        raise UserError(f"NAME '{args.name}': give a plain folder name; --data_root says where it lies")
    settings = {key: getattr(args, key) for key in ("users", "items", "interactions_per_user", "seed")}
    dataset = make_dataset(**settings)
    folder = Path(args.data_root) / args.name
    write_dataset(folder, dataset, settings)
    print(summary(folder, dataset))


def main(argv=None):
    """Run a command line. Returns the exit code, see utils.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
