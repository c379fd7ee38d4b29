"""Make a synthetic multimodal dataset with planted structure: small, quick to train on, and with a known right order.

    python -m data.synthetic demo                 # writes data/demo/ in under two seconds
    python -m data.synthetic demo --seed 7 --users 3000 --items 1500

How the data come about (all draws from one seed):
  items         belong to topics; an item's factor vector is its topic's centre plus a deviation of its own, on the unit
                sphere. Popularity is log-normal and independent of the topic, so most items are in the tail.
  users         mix two or three topics; their preference vector lives in the same factor space.
  interactions  drawn without replacement from softmax(sharpness * preference . factors + popularity).
  text          a noisy, mildly non-linear map of the item's first factors, beside dimensions that mean nothing.
  image         a noisier map of the item's last factors (some of them shared with text), beside more such dimensions.

Why the three models should come out in order, none of them handicapped:
  MF < LightGCN   A user has five training items and a tail item two or three users. MF moves a vector only by its own
                  interactions, so most vectors stay close to chance; a LightGCN vector averages over users and items
                  two and three hops away, which mostly share its topics.
  LightGCN < RecGOAT   A tail or cold item has hardly any paths in the interaction graph, but its features place it
                  among the items of its topic, and graph attention over feature neighbours averages their noise away.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from utils import UserError, atomic_write

FACTORS = 16                  # dimensions of the latent space
TEXT_FACTORS = slice(0, 12)   # what the text tells of them
IMAGE_FACTORS = slice(8, 16)  # what the image tells of them; 8..11 are in both
TEXT_DIMS, IMAGE_DIMS = 96, 128


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
    topic = np.argsort(rng.random((users, len(centres))), axis=1)[:, :2]                # [U, 2], distinct
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
    return {"train": [items[2 * n:] for items, n in zip(items_of, held)],
            "valid": [items[:n] for items, n in zip(items_of, held)],
            "test": [items[n:2 * n] for items, n in zip(items_of, held)]}


def draw_features(rng, factors, dims, nuisance, noise):
    """Features [I, dims] float32: tanh of a random linear map of the factors, plus noise, beside meaningless dimensions.

    factors: [I, f] of about unit length; nuisance: how many of the dims are noise alone; noise: its standard deviation,
    where the signal's is about 1.
    """
    told = dims - nuisance
    signal = np.tanh(factors / factors.std() @ rng.standard_normal((factors.shape[1], told)) / np.sqrt(factors.shape[1]))
    signal = np.concatenate([signal / signal.std(), np.zeros((len(factors), nuisance))], axis=1)
    return (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)
