"""The models: RecGOAT (arXiv 2602.00682; equation numbers are the paper's) and, beside it, matrix factorisation, LightGCN,
VBPR and FREEDOM.

Every model offers the same three things:
    user, item = model.embeddings()          # [U, d], [I, d] (VBPR: wider); the score of (u, i) is user[u] . item[i]
    terms = model.loss(batch)                # {"loss": total, "bpr": ..., ...}, 0-dim tensors; batch: dataloader.Batch
    numbers = model.diagnostics()            # {name: 0-dim tensor} about its insides, for the log

U users, I items, d embedding size, B batch, H heads, m a modality (text, image, audio).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from layers.attention import Branch
from layers.dropout import Dropout
from layers.kernels import product, product_type
from layers.losses import info_nce, squared_norm, triple_bpr, unit_info_nce
from layers.transport import COSTS, cost_unit, sinkhorn_exp, sinkhorn_log
from models.freedom import FREEDOM
from models.lightgcn import LightGCN
from models.mf import MF
from models.vbpr import VBPR
from world import MODALITIES

# ---------------------------------------------------------------- optimal transport between feature dimensions


class Transport(nn.Module):
    """Optimal adaptive transport of one modality (eq. 9-13): Z^m (s T0 + residual), s = d for the barycentric map.

    T0 carries no gradient. It is refreshed every `plan_every` training steps, starting from the last potential, and
    kept in the state dict, so that evaluation and a resumed run use the plan that was trained with.
    """

    def __init__(self, config):
        super().__init__()
        d = config.recdim
        self.config = config
        self.residual = nn.Parameter(torch.zeros(d, d))
        if config.residual_init == "xavier":
            nn.init.xavier_uniform_(self.residual)
        self.register_buffer("plan", torch.full((d, d), 1 / (d * d)))
        self.register_buffer("potential", torch.zeros(d))
        self.age = 0  # training steps so far; a number of Python's, not to wait for the device at every step
        self.scale = d if config.plan_scale == "barycentric" else 1

    def get_extra_state(self):
        """The age, for the state dict."""
        return torch.tensor(self.age)

    def set_extra_state(self, state):
        """Take the age from a state dict."""
        self.age = int(state)

    def cost(self, z_m, z_id):
        """Cost between the dimensions of z_m and z_id, [I, d] each -> [d, d] (eq. 9)."""
        return self.config.ot_scale * COSTS[self.config.ot_cost](z_m, z_id)

    @torch.no_grad()
    def refresh(self, z_m, z_id):
        """Set the plan T0 to the transport between these representations (eq. 10-11)."""
        config, cost = self.config, self.cost(z_m, z_id)
        cost = cost / cost_unit(cost, config.ot_unit)
        if config.sinkhorn == "exp":
            plan = sinkhorn_exp(cost, config.ot_epsilon, config.sinkhorn_iters)
        else:
            plan, potential = sinkhorn_log(cost, config.ot_epsilon, config.sinkhorn_iters, self.potential)
            self.potential.copy_(potential)
        self.plan.copy_(plan)

    def due(self):
        """Whether the next training step takes a new plan."""
        return self.config.transport in ("full", "plan") and self.age % self.config.plan_every == 0

    def advance(self, z_m, z_id):
        """Count a training step, and refresh the plan if it is due: only then these are looked at."""
        if self.due():
            self.refresh(z_m, z_id)
        self.age += 1

    def forward(self, z_m):
        """z_m: [n, d], any rows -> transported z_m [n, d] (eq. 13)."""
        kind = self.config.transport
        if kind == "none":
            return z_m
        if kind == "residual":
            moved = self.residual
        else:
            moved = self.scale * self.plan if kind == "plan" else self.residual + self.scale * self.plan
        return product(z_m, moved, product_type(self.config))

    def w1(self, z_m, z_id):
        """<T0, C>, with gradients through the cost: the 1-Wasserstein distance of eq. 11 (regularised plan)."""
        return (self.plan * self.cost(z_m, z_id)).sum()

    def diagnostics(self, z_m, z_id):
        """W1, mass, entropy (in units of its largest value, 2 ln d) of T0, marginal error, ||Z s T0|| / ||Z||."""
        plan, d = self.plan, len(self.plan)
        mass = plan.sum()
        entropy = -torch.special.xlogy(plan, plan).sum() / (2 * math.log(d))
        moved = self.scale * (z_m @ plan)
        return {
            "w1": self.w1(z_m, z_id),
            "mass": mass,
            "entropy": entropy,
            "row_error": (plan.sum(1) - 1 / d).abs().sum(),
            "ratio": moved.norm() / z_m.norm(),
            "residual_ratio": (z_m @ self.residual).norm() / z_m.norm(),
        }


# ---------------------------------------------------------------- fusion


class Fusion(nn.Module):
    """Item modalities -> one item vector: concat, sum, or transported and weighted (eq. 14); then norm and dropout."""

    def __init__(self, config, modalities):
        super().__init__()
        self.mode, self.modalities = config.fusion, modalities
        self.input, self.norm = config.fuse_input, config.fuse_norm
        d = config.recdim
        if self.mode == "concat":
            self.project = nn.Linear(d * (len(modalities) + 1), d)
        elif self.mode == "sum":
            self.project = nn.Linear(d, d) if config.sum_proj else nn.Identity()
        else:
            self.transports = nn.ModuleDict({m: Transport(config) for m in modalities})
            weights = config.fusion_weights()
            weights = torch.tensor([weights[m] for m in modalities])
            if config.learn_fusion_weights:
                self.weights = nn.Parameter(weights)
            else:  # a setting, which --evaluate_only may change, and no part of the state
                self.register_buffer("weights", weights, persistent=False)
        self.layer_norm = nn.LayerNorm(d) if self.norm.startswith("layer") else nn.Identity()
        self.dropout = Dropout(config.fuse_drop)

    def due(self):
        """Whether the next training step takes new plans."""
        return self.mode == "oat" and any(transport.due() for transport in self.transports.values())

    def advance(self, z_id, z):
        """Count a training step; refresh the plans that are due. z_id: [I, d]; z: {m: [I, d]}, anything if none is due."""
        if self.mode == "oat":
            for m in self.modalities:
                self.transports[m].advance(z[m], z_id)

    def forward(self, z_id, z):
        """z_id: [n, d]; z: {m: [n, d]}, the same items -> unified item vectors [n, d]."""
        parts = [z_id, *(self.transports[m](z[m]) if self.mode == "oat" else z[m] for m in self.modalities)]
        if self.input == "l2":
            parts = [F.normalize(part, dim=1) for part in parts]
        if self.mode == "concat":
            fused = self.project(torch.cat(parts, 1))
        elif self.mode == "sum":
            fused = self.project(sum(parts))
        else:
            weights = [1 - self.weights.sum(), *self.weights]
            fused = sum(weight * part for weight, part in zip(weights, parts))
        fused = self.dropout(self.layer_norm(fused))
        return F.normalize(fused, dim=1) if self.norm.endswith("l2") else fused


# ---------------------------------------------------------------- RecGOAT


class RecGOAT(nn.Module):
    """LightGCN on the user-item graph, graph attention on the modality graphs, contrastive alignment, transport, fusion.

    The loss is BPR + decay * norm + contrastive_weight * contrastive + w1_weight * W1 (summed over modalities).
    """

    def __init__(self, config, dataset):
        super().__init__()
        self.config, self.graphs, self.user_graph = config, dataset.graphs, dataset.user_graph
        self.backbone = LightGCN(config, dataset)
        self.modalities = [m for m in MODALITIES if m in dataset.features]
        narrow = product_type(config) or torch.float32
        for m in self.modalities:
            self.register_buffer(f"{m}_features", dataset.features[m].to(narrow), persistent=False)
        self.branches = nn.ModuleDict(
            {
                m: Branch(config, dataset.features[m].shape[1], config.item_branch_layers)
                for m in self.modalities
            }
        )
        if self.user_graph is not None:
            self.register_buffer("user_features", dataset.user_features.to(narrow), persistent=False)
            self.user_branch = Branch(config, dataset.user_features.shape[1], config.user_branch_layers)
        self.fusion = Fusion(config, self.modalities)

    def represent(self):
        """User vectors [U, d], item ID vectors [I, d], item modality vectors {m: [I, d]} before alignment (eq. 3-6)."""
        user, z_id = self.backbone.embeddings()
        return self.with_user_graph(user), z_id, {m: self.branch(m) for m in self.modalities}

    def branch(self, m, rows=None):
        """Vectors of one modality: of all items [I, d], or of rows [r] int64, each once: [r, d]."""
        return self.branches[m](self.graphs[m], getattr(self, f"{m}_features"), rows)

    def with_user_graph(self, user, rows=None):
        """User vectors mixed with those of the user-user graph (sec. 3.4), if there is one. user: [U, d], or [v, d] of rows, each once."""
        if self.user_graph is None:
            return user
        eta = self.config.eta
        return (1 - eta) * user + eta * self.user_branch(self.user_graph, self.user_features, rows)

    def embeddings(self):
        """User vectors [U, d] and unified item vectors [I, d] (eq. 14)."""
        user, z_id, z = self.represent()
        return user, self.fusion(z_id, z)

    def takes_all(self):
        """Whether a training step makes the vectors of all items and users: for a new plan, and for W1.

        On a GPU too, where the host would have to wait for the number of edges that lead to the batch.
        """
        config = self.config
        asked = (self.training and self.fusion.due()) or (config.w1_weight and config.fusion == "oat")
        return bool(asked or self.backbone.user.device.type == "cuda")

    def of_batch(self, batch):
        """What a training step takes: vectors of batch.each_user [v, d] and batch.each_item [r, d], {m: [r, d]}, layer 0 of both, W1.

        Counts a training step, and takes new plans if they are due. W1 is summed over modalities; None unless it is asked for.
        """
        config = self.config
        if not self.takes_all():
            user, z_id, *layer0 = self.backbone.of_batch(batch)
            z = {m: self.branch(m, batch.each_item) for m in self.modalities}
            if self.training:
                self.fusion.advance(z_id, z)
            return self.with_user_graph(user, batch.each_user), z_id, z, layer0, None
        user, z_id, z = self.represent()
        if self.training:
            self.fusion.advance(z_id.detach(), {m: v.detach() for m, v in z.items()})
        w1 = None
        if config.w1_weight and config.fusion == "oat":
            w1 = sum(self.fusion.transports[m].w1(z[m], z_id) for m in self.modalities)
        users, items = batch.each_user, batch.each_item
        layer0 = self.backbone.user.index_select(0, users), self.backbone.item.index_select(0, items)
        return (
            user.index_select(0, users),
            z_id.index_select(0, items),
            {m: v.index_select(0, items) for m, v in z.items()},
            layer0,
            w1,
        )

    def loss(self, batch):
        """The total and its terms. Only the items of the batch are transported and fused."""
        config = self.config
        user, z_id, z, layer0, w1 = self.of_batch(batch)
        item = self.fusion(z_id, z)
        terms = {"bpr": triple_bpr(user, item, batch), "norm": self.backbone.norm(batch, *layer0)}
        total = terms["bpr"] + config.decay * terms["norm"]
        if config.modality_decay:
            terms["modality_norm"] = sum(
                squared_norm((v, batch.pos_at), (v, batch.neg_at)) for v in z.values()
            )
            total = total + config.modality_decay * terms["modality_norm"]
        if config.contrastive_weight:
            contrastive = self.contrastive(user, item, [z_id, *z.values()], batch)
            terms.update(contrastive)
            total = total + config.contrastive_weight * contrastive["contrastive"]
        if w1 is not None:
            terms["w1"] = w1
            total = total + config.w1_weight * w1
        return {"loss": total, **terms}

    def contrastive(self, user, item, views, batch):
        """w * (InfoNCE over the modality pairs, eq. 7-8) + (1 - w) * InfoNCE(user, positive item). Terms as a dict.

        user: [v, d], vectors of batch.each_user; of batch.each_item: item, fused vectors, and views, ID and modality vectors, [r, d] each.
        """
        config, w = self.config, self.config.modality_consistency_weight
        terms, total = {}, 0.0
        if w:
            once = (
                [batch.pos_rows, batch.neg_rows] if config.contrastive_dedup else [batch.pos_at, batch.neg_at]
            )
            pairs = [
                loss
                for rows in once[: 2 if config.contrastive_items == "pos_neg" else 1]
                for loss in self.modality_pairs([view.index_select(0, rows) for view in views])
            ]
            terms["modality_nce"] = sum(pairs) / (len(pairs) if config.contrastive_reduction == "mean" else 1)
            # the released code minimises the mean over pairs of (1 - InfoNCE); the constant 1 does not matter
            total = total + (w if config.contrastive_sign == "attract" else -w) * terms["modality_nce"]
        if w < 1:
            rows, target = batch.pos_at, None
            if config.contrastive_dedup:
                rows, target = batch.pos_rows, torch.searchsorted(batch.pos_rows, batch.pos_at)
            users, candidates = user.index_select(0, batch.user_at), item.index_select(0, rows)
            terms["user_item_nce"] = info_nce(
                users, candidates, config.temperature, target, dtype=product_type(config)
            )
            total = total + (1 - w) * terms["user_item_nce"]
        return {"contrastive": total, **terms}

    def modality_pairs(self, views):
        """InfoNCE of every pair among views (id, text, image, audio), [n, d] each, a list (eq. 8)."""
        views = [F.normalize(view, dim=1) for view in views]
        return [
            unit_info_nce(a, b, self.config.temperature, dtype=product_type(self.config))
            for i, a in enumerate(views)
            for b in views[i + 1 :]
        ]

    def diagnostics(self):
        """Norms, fusion weights, and what each transport plan looks like ("plan/text/mass", ...)."""
        _, z_id, z = self.represent()
        numbers = self.backbone.diagnostics()
        if self.config.fusion == "oat":
            for weight, m in zip(self.fusion.weights, self.modalities):
                numbers[f"fusion/{m}"] = weight
                numbers.update(
                    {
                        f"plan/{m}/{name}": value
                        for name, value in self.fusion.transports[m].diagnostics(z[m], z_id).items()
                    }
                )
            numbers["fusion/id"] = 1 - self.fusion.weights.sum()
        return numbers


MODELS = {"mf": MF, "lgn": LightGCN, "vbpr": VBPR, "freedom": FREEDOM, "lgn_mm": RecGOAT}


def make_model(config, dataset, device):
    """The model that config names, on device."""
    return MODELS[config.model](config, dataset).to(device)
