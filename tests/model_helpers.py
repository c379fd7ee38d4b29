"""Small models, batches and random tensors that the tests of layers and models share."""

import math

import numpy as np
import torch
from helpers import dataset_of

import layers.device
from dataloader import make_batches
from models.registry import config_class
from session import make_model

CPU = torch.device("cpu")
NO_DROPOUT = {"attn_dropout": 0.0, "fuse_drop": 0.0}
SMALL = {
    "model": "lgn_mm",
    "recdim": 8,
    "attn_heads": 2,
    "item_knn_k": 4,
    "user_knn_k": 4,
    "bpr_batch": 64,
    "topks": (5,),
}

# Every model of the registry, and the settings of RecGOAT that take other paths through the code.
TRAINED = {
    "mf": {"model": "mf"},
    "lgn": {"model": "lgn"},
    "vbpr": {"model": "vbpr"},
    "freedom": {"model": "freedom"},
    "bm3": {"model": "bm3", "bm3_dropout": 0.0},
    "lattice": {"model": "lattice"},
    "mgcn": {"model": "mgcn"},
    "smore": {"model": "smore"},
    "oat": {},
    "concat": {"fusion": "concat", "temperature": 0.01},
    "sum": {"fusion": "sum"},
    "users": {"user_text_feat": "mean", "feat_proj": 1, "item_branch_layers": 1},
    "w1": {"w1_weight": 0.3, "modality_consistency_weight": 0.4, "contrastive_items": "pos_neg"},
    "squared": {"ot_cost": "squared", "sinkhorn": "exp", "modality_decay": 0.1},
    "bf16": {"precision": "bf16"},
}
UNTRAINED = {
    "itemknn": {"model": "itemknn"},
    "ease": {"model": "ease"},
    "neighbours": {"model": "mf", "neighbour_weight": 2.0},
    "spread": {"model": "lgn", "neighbour_weight": 2.0, "neighbour_scale": "spread"},
}


def randn(*shape, seed=0, dtype=torch.float64, grad=False):
    """Normal random numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


def settings(**changes):
    """Config of a small model, by default RecGOAT."""
    values = {**SMALL, **changes}
    return config_class(values["model"])(**values)


def settings_on(folder, modalities=("text", "image"), **changes):
    """Config of a small model on the dataset of the small_dataset fixture, with these modalities."""
    audio = folder / "audio_feat.npy"
    if "audio" in modalities and not audio.exists():
        np.save(audio, np.random.default_rng(2).standard_normal((30, 7)).astype(np.float32))
    paths = {f"{m}_feat": str(folder / f"{m}_feat.npy") for m in modalities}
    return settings(dataset=folder.name, data_root=str(folder.parent), **{**paths, **changes})


def build(folder, modalities=("text", "image"), **changes):
    """The model of settings_on."""
    config = settings_on(folder, modalities, **changes)
    torch.manual_seed(config.seed)
    return make_model(config, dataset_of(config), CPU)


def batch_of(users, pos, neg):
    """One Batch of these triples."""
    return make_batches(*map(torch.tensor, (users, pos, neg)), len(users))[0]


def repeating_batch():
    """A batch in which users and items occur more than once, items as positives and as negatives too."""
    return batch_of([0, 1, 1, 2, 5, 0], [3, 3, 4, 9, 9, 8], [10, 11, 3, 12, 11, 13])


def bpr_by_hand(user, item, batch):
    """Mean of -log sigmoid(u . p - u . n), triple by triple."""
    user, item, triples = user.detach(), item.detach(), zip(*(ids.tolist() for ids in batch[:3]))
    margins = [float(user[u] @ item[p] - user[u] @ item[n]) for u, p, n in triples]
    return sum(math.log(1 + math.exp(-margin)) for margin in margins) / len(margins)


def norm_by_hand(user, item, batch):
    """Mean over triples of the summed squares of their three vectors."""
    user, item, triples = user.detach(), item.detach(), zip(*(ids.tolist() for ids in batch[:3]))
    rows = [float((torch.stack([user[u], item[p], item[n]]) ** 2).sum()) for u, p, n in triples]
    return sum(rows) / len(rows)


def dense_graphs(folder, model):
    """(A of the user-item graph, features {m: [I, d_m]}) of a small dataset in float64, from its files."""
    rows = np.zeros((40, 30))
    for line in (folder / "train.txt").read_text().splitlines():
        user, *items = map(int, line.split())
        rows[user, items] = 1
    degree_u, degree_i = rows.sum(1), rows.sum(0)
    scaled = rows / np.sqrt(np.maximum(degree_u, 1)[:, None] * np.maximum(degree_i, 1))
    scaled = scaled.astype(np.float32).astype(np.float64)  # a dataset's graph is in single precision
    adjacency = np.block([[np.zeros((40, 40)), scaled], [scaled.T, np.zeros((30, 30))]])
    features = {m: torch.from_numpy(np.load(folder / f"{m}_feat.npy")).double() for m in model.project}
    return torch.from_numpy(adjacency), features


def cosine_graph(x, k):
    """D^-1/2 S D^-1/2 of the cosines of rows with themselves and their k nearest others, dense."""
    unit = x / x.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    order = (cosines - 9 * torch.eye(len(x), dtype=x.dtype)).argsort(dim=1, descending=True)
    kept = torch.eye(len(x), dtype=x.dtype).scatter(1, order[:, :k], 1)
    similarity = kept * cosines.clamp(min=0)
    scale = similarity.sum(1) ** -0.5
    return scale[:, None] * similarity * scale


def triple_terms(user, item, p, batch):
    """(BPR, mean squared norm of the embeddings p["user"], p["item"]), triple by triple."""
    bpr, norm = [], []
    for u, i, j in zip(*(ids.tolist() for ids in batch[:3])):
        bpr.append(torch.log(1 + torch.exp(user[u] @ item[j] - user[u] @ item[i])))
        norm.append(sum((row**2).sum() for row in (p["user"][u], p["item"][i], p["item"][j])))
    return sum(bpr) / len(bpr), sum(norm) / len(norm)


def assert_equals_oracle(model, batch, oracle):
    """Assert that a model in float64 and an oracle agree to 1e-10: vectors, loss terms, all gradients.

    oracle: parameters {name: tensor} -> (user vectors, item vectors, {term: value}).
    """
    model.to(torch.float64)
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    user, item, expected = oracle(copies)
    with torch.no_grad():
        torch.testing.assert_close(model.embeddings(), (user, item), rtol=1e-10, atol=1e-10)
    terms = model.loss(batch)
    torch.testing.assert_close(terms, expected, rtol=1e-10, atol=1e-10)
    terms["loss"].backward()
    expected["loss"].backward()
    found = gradients(model)
    for name, copy in copies.items():
        assert copy.grad.abs().sum() > 0, name
        torch.testing.assert_close(found[name], copy.grad, rtol=1e-10, atol=1e-10)


def final_loss(model, steps=60, lr=1e-2):
    """(first, last) total loss of Adam on the same batch."""
    optimiser, losses = torch.optim.Adam(model.train().parameters(), lr), []
    for step in range(steps):
        model.begin_step(step)
        optimiser.zero_grad()
        loss = model.loss(repeating_batch())["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def gradients(model):
    """{name: gradient} of the parameters of a module."""
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def random_neighbours(n, k, seed=3):
    """[n, k] ids of other nodes, each once in a row; no row contains n - 1."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation([j for j in range(n - 1) if j != i])[:k] for i in range(n)])


def edges_of(neighbours):
    """{(source, target)} of a neighbour table: both directions and self loops, found by loops."""
    edges = {(i, i) for i in range(len(neighbours))}
    for i, row in enumerate(neighbours.tolist()):
        edges |= {edge for j in row for edge in ((i, j), (j, i))}
    return edges


def choose_gpu_branches(monkeypatch):
    """Let all code take its GPU branches from now on, for tensors on the CPU too.

    The functions of torch.cuda that the branches call get stand-ins.
    """
    monkeypatch.setattr(layers.device, "CPU_KINDS", ())
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
