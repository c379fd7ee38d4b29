"""--recipe paper against the paper's equations, written down here; and settings that serve the recipes."""

import itertools

import numpy as np
import ot
import pytest
import torch
from helpers import dataset_of, naive_neighbours
from model_helpers import CPU, NO_DROPOUT, SMALL, build, gradients, repeating_batch
from small_runs import flags
from torch.nn import functional as F
from torch_geometric.nn import GATConv

from parse import parse_args
from session import make_model


def paper_model(folder):
    """The model of --recipe paper on the small dataset, in float64."""
    given = {"recipe": "paper", "dataset": folder.name, "data_root": folder.parent, "contrastive_weight": 0.3}
    config, _ = parse_args(flags({**given, **SMALL, "w1_weight": 0.2}))
    torch.manual_seed(0)
    return make_model(config, dataset_of(config), CPU).double().train()


class Paper:
    """Eq. 2-14 and 19 by hand, with the weights of a model. Every matrix is dense."""

    def __init__(self, model, folder):
        self.model, self.config = model, model.config
        train = np.loadtxt(folder / "train.txt", dtype=int)
        self.pairs = {(row[0], item) for row in train.tolist() for item in row[1:]}
        features = {m: np.load(folder / f"{m}_feat.npy").astype(np.float32) for m in ("text", "image")}
        self.user, self.id = self.lightgcn()
        self.z = {m: self.attention(m, x) for m, x in features.items()}

    def lightgcn(self):
        """Eq. 4-5."""
        ids = torch.cat([self.model.backbone.user, self.model.backbone.item])
        a = torch.zeros(70, 70, dtype=torch.float64)
        for user, item in self.pairs:
            a[user, 40 + item] = a[40 + item, user] = 1
        degree = a.sum(1).clamp_min(1)
        a /= (degree[:, None] * degree).sqrt()
        layers = [ids, a @ ids, a @ a @ ids, a @ a @ a @ ids]
        return (sum(layers) / 4).split([40, 30])

    def attention(self, m, features):
        """Eq. 2-3: every item attends to its nearest items and to nothing else."""
        table = naive_neighbours(features, 4)
        edges = torch.tensor([(j, i) for i, row in enumerate(table.tolist()) for j in row]).T
        x = torch.from_numpy(features).double()
        for layer in self.model.branches[m].layers:
            oracle = GATConv(x.shape[1], 4, 2, add_self_loops=False, bias=False).double()
            for name, weight in zip(
                ("lin.weight", "att_src", "att_dst"), (layer.weight, layer.a_src, layer.a_dst)
            ):
                part, _, last = name.rpartition(".")
                shape = oracle.get_parameter(name).shape
                owner = oracle.get_submodule(part)
                del owner._parameters[last]
                setattr(owner, last, weight.view(shape))
            x = F.leaky_relu(oracle(x, edges), 0.2)
        return x

    def cost(self, m, items):
        """Eq. 10, from the given items."""
        return (self.z[m][items][:, :, None] - self.id[items][:, None, :]).abs().mean(0)

    def plan(self, m, items):
        """Eq. 11."""
        cost = self.cost(m, items).detach().numpy()
        centred = cost - cost.mean(0) - cost.mean(1, keepdims=True) + cost.mean()
        uniform = np.full(8, 1 / 8)
        return torch.from_numpy(ot.sinkhorn(uniform, uniform, cost / centred.std(), 0.5, stopThr=1e-12))

    def fused(self, items):
        """Eq. 12-14; the plan is of the given items."""
        moved = {m: z @ (self.plan(m, items) + self.residual(m)) for m, z in self.z.items()}
        return 0.8 * moved["text"] + 0.05 * moved["image"] + 0.15 * self.id

    def residual(self, m):
        return self.model.fusion.transports[m].residual

    def loss(self, batch):
        """Eq. 19, the sum of eq. 7-8 over the pairs, and <T0, C>, with the weights of the settings."""
        users, pos, neg = batch[:3]
        items = sorted({*pos.tolist(), *neg.tolist()})
        fused, positives = self.fused(items), sorted(set(pos.tolist()))
        bpr = -F.logsigmoid((self.user[users] * (fused[pos] - fused[neg])).sum(1)).mean()
        views = [view[positives] for view in (self.id, self.z["text"], self.z["image"])]
        nce = sum(
            F.cross_entropy(F.normalize(a) @ F.normalize(b).T / 0.2, torch.arange(len(positives)))
            for a, b in itertools.combinations(views, 2)
        )
        w1 = sum((self.plan(m, items) * self.cost(m, items)).sum() for m in self.z)
        return bpr + 0.3 * nce + 0.2 * w1


def test_recipe_paper_is_the_literal_paper(small_dataset):
    model, batch = paper_model(small_dataset), repeating_batch()
    model.begin_step(0)
    loss = model.loss(batch)["loss"]
    loss.backward()
    found = gradients(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    paper = Paper(model, small_dataset)
    expected = paper.loss(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, gradient in zip(names, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    user, item = model.embeddings()
    torch.testing.assert_close(user, paper.user)
    torch.testing.assert_close(item, paper.fused(list(range(30))), rtol=1e-3, atol=1e-5)


def test_recipe_paper_has_neither_bias_nor_dropout(small_dataset):
    model = paper_model(small_dataset)
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {f"branches.{m}.layers.0.bias" for m in ("text", "image")}
    assert torch.equal(model.train().embeddings()[1], model.eval().embeddings()[1])


@pytest.mark.parametrize("plan_from", ["batch", "forward"])
def test_plans_of_a_forward_pass_are_not_those_of_the_last_refresh(small_dataset, plan_from):
    model = build(small_dataset, plan_from=plan_from, **NO_DROPOUT)
    model.begin_step(0)
    losses, items = [], []
    with torch.no_grad():
        for _ in range(2):
            losses.append(model.loss(repeating_batch())["loss"])
            items.append(model.embeddings()[1])
            for transport in model.fusion.transports.values():
                transport.plan.fill_(7.0)
    assert torch.equal(*losses) and torch.equal(*items)


def test_the_plan_of_a_forward_pass_has_its_dropout_and_that_of_a_batch_its_items(small_dataset):
    models = {
        kind: build(small_dataset, plan_from=kind, **NO_DROPOUT) for kind in ("items", "batch", "forward")
    }
    losses = {}
    for kind, model in models.items():
        model.begin_step(0)
        losses[kind] = model.loss(repeating_batch())["loss"].item()
    assert losses["forward"] == pytest.approx(losses["items"], rel=1e-4)
    assert losses["batch"] != pytest.approx(losses["items"], rel=1e-4)
    noisy = build(small_dataset, plan_from="forward", feat_dropout=0.5).train()
    _, z_id, z = noisy.represent()
    a, b = noisy.fusion.plans(z_id, z)["text"], noisy.fusion.plans(z_id, noisy.represent()[2])["text"]
    assert not torch.allclose(a, b)


def test_an_absent_modality_is_replaced_by_the_id_vectors(small_dataset):
    model = build(small_dataset, ["text"], absent_modality="id", transport="none", fuse_norm="none").eval()
    _, z_id, z = model.represent()
    assert list(z) == ["text", "image"] and torch.equal(z["image"], z_id)
    _, item = model.embeddings()
    torch.testing.assert_close(item, 0.8 * z["text"] + 0.05 * z_id + 0.15 * z_id)
    model.begin_step(0)
    assert {"fusion/image", "fusion/text"} <= model.diagnostics().keys()
    assert model.cold_item_vectors({"text": torch.ones(2, 12)}).shape == (2, 8)
    assert list(build(small_dataset, ["text"]).represent()[2]) == ["text"]


def test_the_anchor_of_text_and_images(small_dataset):
    terms = {
        anchor: build(small_dataset, contrastive_anchor=anchor).eval().loss(repeating_batch())["modality_nce"]
        for anchor in ("text", "image")
    }
    model = build(small_dataset).eval()
    pos = sorted(set(repeating_batch().pos.tolist()))
    _, z_id, z = model.represent()
    i, t, v = (F.normalize(x[pos]) for x in (z_id, z["text"], z["image"]))

    def nce(a, b):
        return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(pos)))

    shared = nce(i, t) + nce(i, v)
    torch.testing.assert_close(terms["text"], shared + nce(t, v))
    torch.testing.assert_close(terms["image"], shared + nce(v, t))
