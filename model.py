"""RecGOAT (Li et al. 2026, arXiv 2602.00682): the paper's model. Equation numbers are the paper's.

    features -> graph attention over item-kNN graphs -> transport to the ID space -> fusion -> item vectors
    LightGCN on the user-item graph -> user vectors, item ID vectors

    user, item = model.embeddings()     # [U, d], [I, d]; the score of a pair is user[u] . item[i]
    terms = model.loss(batch)           # BPR and contrastive alignment (CMCL) of a dataloader.Batch

U users, I items, d embedding size, B batch, H heads, m a modality (text, image, audio). Layers are in
layers/, the contract that every model fulfils is models/base.py, and the baselines are in models/.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Collection

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from dataloader import Batch, Dataset, Needs
from layers.attention import AttentionGraph, Branch
from layers.columns import (
    LayerNorm,
    all_columns,
    all_parts,
    own_outputs,
    own_parameter,
    own_part,
    ranks,
    row_norms,
    shared,
    sum_parts,
    unit_rows,
)
from layers.cosine import mean_direction
from layers.dropout import Dropout
from layers.kernels import product, unit_info_nce
from layers.losses import directions, info_nce, squared_norm, total
from layers.transport import COSTS, cost_unit, sinkhorn_exp, sinkhorn_log
from models.base import Heatmap, HistoryPart, Recommender, batch_bpr, product_dtype, sparse_like
from models.lightgcn import LightGCN
from utils import UserError
from world import MODALITIES, Config

# Order of the modality vectors in pairs, the first of a pair being the anchor, by --contrastive_anchor.
PAIR_ORDER = {"text": MODALITIES, "image": ("image", "text", "audio")}
FUSION_WEIGHTS = {"text": "beta", "image": "alpha", "audio": "audio_weight"}  # names of the settings


Plans = dict[str, torch.Tensor]  # {modality: T0 [d, d]}


def uses_plan(config: Config) -> bool:
    """Whether transport plans are computed, rather than a residual alone or no transport at all."""
    return config.fusion == "oat" and config.transport in ("full", "plan")


# ---------------------------------------------------------------- optimal adaptive transport


class Transport(nn.Module):
    """Optimal adaptive transport of one modality (eq. 9-13): Z^m -> Z^m (s T0 + residual).

    s = d makes T0 a barycentric map, whose rows sum to 1. T0 carries no gradient; it is a buffer, so that
    evaluation and resumed runs use the plan that the weights were trained with.
    """

    plan: torch.Tensor
    potential: torch.Tensor
    figures: torch.Tensor

    def __init__(self, config: Config):
        super().__init__()
        d = config.recdim
        self.config = config
        self.scale = d if config.plan_scale == "barycentric" else 1
        residual = torch.zeros(d, d)
        if config.residual_init == "xavier":
            nn.init.xavier_uniform_(residual)
        self.residual = own_parameter(residual, 1)
        self.register_buffer("plan", torch.full((d, d), 1 / (d * d)))  # T0
        self.register_buffer("potential", torch.zeros(d))  # Sinkhorn's, where the next plan starts from
        self.register_buffer("figures", torch.zeros(3))  # of the last refresh, for the log

    def cost(self, z_m: torch.Tensor, z_id: torch.Tensor) -> torch.Tensor:
        """Cost between the dimensions of z_m and z_id of the same n items (eq. 10): [own columns, d].

        z_m: [n, own columns]; z_id: [n, d], all columns.
        """
        return self.config.ot_scale * COSTS[self.config.ot_cost](z_m, z_id)

    def whole_cost(self, z_m: torch.Tensor, z_id: torch.Tensor) -> torch.Tensor:
        """The cost of all columns: [d, d], without gradients between processes."""
        return all_parts(self.cost(z_m, z_id), size=z_id.shape[1])

    @torch.no_grad()
    def optimal(self, cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Optimal transport of a cost [d, d] (eq. 10-11): plan [d, d] and potential [d]."""
        config = self.config
        scaled = cost / cost_unit(cost, config.ot_unit)
        if config.sinkhorn == "exp":
            return sinkhorn_exp(scaled, config.ot_epsilon, config.sinkhorn_iters), self.potential
        return sinkhorn_log(scaled, config.ot_epsilon, config.sinkhorn_iters, self.potential)

    @torch.no_grad()
    def refresh(self, z_m: torch.Tensor, z_id: torch.Tensor) -> None:
        """Set T0 to the optimal transport between these representations, as `cost` takes them.

        W1 and the relative lengths of transported vectors, over about 1,024 items, are kept for the log.
        """
        cost = self.whole_cost(z_m, z_id)
        plan, potential = self.optimal(cost)
        self.plan.copy_(plan)
        self.potential.copy_(potential)
        sample = all_columns(z_m[:: max(len(z_m) // 1024, 1)])
        matrices = self.scale * own_part(plan, 1), self.residual
        whole = sample.norm().clamp_min(1e-30)
        lengths = [row_norms(sample @ matrix).norm() / whole for matrix in matrices]
        self.figures.copy_(torch.stack([(plan * cost).sum(), *lengths]))

    def forward(self, z_m: torch.Tensor, plan: torch.Tensor | None = None) -> torch.Tensor:
        """Transported vectors (eq. 13) of any items: [n, own columns] -> [n, own columns].

        plan: [d, d], by default T0.
        """
        kind, plan = self.config.transport, self.plan if plan is None else plan
        if kind == "none":
            return z_m
        if kind == "residual":
            matrix: torch.Tensor = self.residual
        elif kind == "plan":
            matrix = self.scale * own_part(plan, 1)
        else:
            matrix = self.residual + self.scale * own_part(plan, 1)
        return product(all_columns(z_m), matrix, product_dtype(self.config))

    def w1(self, z_m: torch.Tensor, z_id: torch.Tensor, plan: torch.Tensor | None = None) -> torch.Tensor:
        """Regularised 1-Wasserstein distance <T0, C> (eq. 11), with gradients through the cost."""
        plan = self.plan if plan is None else plan
        return sum_parts((own_part(plan, 0) * self.cost(z_m, z_id)).sum())

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Mass, entropy (relative to its maximum 2 ln d) and marginal error of T0; figures of refresh.

        "ratio" and "residual_ratio" are the lengths of Z s T0 and Z residual relative to Z. Empty if no
        plan is used.
        """
        if not uses_plan(self.config):
            return {}
        plan, d = self.plan, len(self.plan)
        entropy = -torch.special.xlogy(plan, plan).sum() / max(2 * math.log(d), 1e-9)
        row_error = (plan.sum(1) - 1 / d).abs().sum()
        w1, ratio, residual_ratio = self.figures
        return {
            "w1": w1,
            "mass": plan.sum(),
            "entropy": entropy,
            "row_error": row_error,
            "ratio": ratio,
            "residual_ratio": residual_ratio,
        }


# ---------------------------------------------------------------- fusion


class Fusion(nn.Module):
    """One vector from ID and modality vectors: concat, sum, or transport and weighted sum (eq. 14).

    LayerNorm, dropout and L2 normalisation follow, as fuse_norm and fuse_drop say; they are in no equation.
    """

    weights: torch.Tensor

    def __init__(self, config: Config, modalities: list[str]):
        super().__init__()
        self.config, self.modalities = config, modalities
        d = config.recdim
        if config.fusion == "concat":
            self.project: nn.Module = own_outputs(nn.Linear(d * (len(modalities) + 1), d))
        elif config.fusion == "sum":
            self.project = own_outputs(nn.Linear(d, d)) if config.sum_proj else nn.Identity()
        else:
            self.transports = nn.ModuleDict({m: Transport(config) for m in modalities})
            weights = torch.tensor(fusion_weights(config, modalities))
            if config.learn_fusion_weights:
                self.weights = nn.Parameter(weights)
            else:
                # Not in the state dict, so that --evaluate_only can try other weights.
                self.register_buffer("weights", weights, persistent=False)
        self.layer_norm = LayerNorm(d) if config.fuse_norm.startswith("layer") else nn.Identity()
        self.dropout = Dropout(config.fuse_drop, dim=1)

    def transport(self, m: str) -> Transport:
        """The transport of one modality; there are transports with fusion "oat" alone."""
        return typing.cast(Transport, self.transports[m])

    @torch.no_grad()
    def plans(self, z_id: torch.Tensor, z: dict[str, torch.Tensor]) -> Plans:
        """{m: T0 of these very vectors [d, d]}, or {} where the stored T0 is to be used."""
        if not uses_plan(self.config) or self.config.plan_from == "items":
            return {}
        whole = all_columns(z_id)
        transports = {m: self.transport(m) for m in self.modalities}
        return {m: each.optimal(each.whole_cost(z[m], whole))[0] for m, each in transports.items()}

    def forward(
        self, z_id: torch.Tensor, z: dict[str, torch.Tensor], plans: Plans | None = None
    ) -> torch.Tensor:
        """Unified vectors [n, own columns] of any items.

        z_id: ID vectors; z: {m: vectors}, the same items, [n, own columns] each; plans: those of `plans`, by
        default T0.
        """
        parts = self.inputs(z_id, z, plans)
        if self.config.fusion == "concat":
            fused = self.project(torch.cat([all_columns(part) for part in parts], 1))
        elif self.config.fusion == "sum":
            fused = total(parts)
            fused = self.project(all_columns(fused)) if self.config.sum_proj else fused
        else:
            fused = total(weight * part for weight, part in zip(self.shares(), parts, strict=True))
        fused = self.dropout(self.layer_norm(fused))
        return unit_rows(fused) if self.config.fuse_norm.endswith("l2") else fused

    def shares(self) -> list[torch.Tensor]:
        """The weights of the ID vectors and of each modality in eq. 14, which sum to 1."""
        learnt = shared(self.weights)
        return [1 - learnt.sum(), *learnt]

    def inputs(
        self, z_id: torch.Tensor, z: dict[str, torch.Tensor], plans: Plans | None
    ) -> list[torch.Tensor]:
        """ID vectors and (transported) modality vectors, as they are fused; arguments as of `forward`."""
        parts = [z_id, *(z[m] for m in self.modalities)]
        if self.config.fusion == "oat":
            plans = plans or {}
            parts[1:] = [self.transport(m)(z[m], plans.get(m)) for m in self.modalities]
        return [unit_rows(part) for part in parts] if self.config.fuse_input == "l2" else parts

    @torch.no_grad()
    def split(
        self, z_id: torch.Tensor, z: dict[str, torch.Tensor], plans: Plans | None
    ) -> dict[str, torch.Tensor]:
        """`forward` without dropout, as a sum: {"id": [n, d], m: [n, d], "constant": [n, d]}; one process.

        LayerNorm and L2 divide an item's parts by the same numbers, those of its whole vector. "constant" are
        the bias of the projection and the shift of LayerNorm, which belong to no part.
        """
        parts, constant = self.inputs(z_id, z, plans), torch.zeros_like(z_id)
        if self.config.fusion == "oat":
            parts = [weight * part for weight, part in zip(self.shares(), parts, strict=True)]
        elif isinstance(self.project, nn.Linear):
            blocks = self.project.weight.split(self.config.recdim, 1)
            blocks = blocks if len(blocks) == len(parts) else blocks * len(parts)
            parts = [part @ block.T for part, block in zip(parts, blocks, strict=True)]
            constant = constant + self.project.bias
        parts.append(constant)
        if isinstance(self.layer_norm, LayerNorm):
            deviation = (total(parts).var(1, correction=0, keepdim=True) + self.layer_norm.eps).sqrt()
            scale = self.layer_norm.weight / deviation
            parts = [scale * (part - part.mean(1, keepdim=True)) for part in parts]
            parts[-1] = parts[-1] + self.layer_norm.bias
        if self.config.fuse_norm.endswith("l2"):
            length = total(parts).norm(dim=1, keepdim=True).clamp_min(1e-12)
            parts = [part / length for part in parts]
        return dict(zip(["id", *self.modalities, "constant"], parts, strict=True))


def fusion_weights(config: Config, modalities: Collection[str]) -> list[float]:
    """Weights g_m of eq. 14, in the order of the modalities. Raises UserError if their sum exceeds 1."""
    weights = [getattr(config, FUSION_WEIGHTS[m]) for m in modalities]
    if sum(weights) > 1 + 1e-6:
        named = " + ".join(f"--{FUSION_WEIGHTS[m]} {w:g}" for m, w in zip(modalities, weights, strict=True))
        raise UserError(
            f"{named} is more than 1, which leaves the ID vector a negative weight: lower one of them"
        )
    return weights


# ---------------------------------------------------------------- RecGOAT


class RecGOAT(Recommender):
    """LightGCN, graph attention over modality graphs, cross-modal contrastive learning, transport and fusion.

    The loss is BPR + decay * norm + contrastive_weight * contrastive + w1_weight * W1 (W1 summed over
    modalities).
    """

    needs: typing.ClassVar[Needs] = Needs(
        adjacency=True, features=True, neighbours=True, user_features=True, column_major=True
    )
    user_features: torch.Tensor
    branches: nn.ModuleDict
    graphs: nn.ModuleDict
    user_branch: Branch
    fusion: Fusion

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        # The neighbourhood term belongs to the whole model.
        self.backbone = LightGCN(dataclasses.replace(config, neighbour_weight=0.0), dataset)
        self.modalities = [m for m in MODALITIES if m in dataset.features]
        absent = ("text", "image") if config.absent_modality == "id" else ()
        # Those that are fused: of an absent one the ID vectors.
        self.fused = [m for m in MODALITIES if m in {*self.modalities, *absent}]
        dtype = product_dtype(config) or torch.float32
        for m in self.modalities:
            self.register_buffer(f"{m}_features", dataset.features[m].to(dtype), persistent=False)
            if config.missing_fill == "id" and m in dataset.missing:
                rows = torch.from_numpy(dataset.missing[m])[:, None]
                self.register_buffer(f"{m}_absent", rows, persistent=False)
        sizes = self.feature_sizes()
        self.graphs = nn.ModuleDict({m: self.make_graph(dataset.neighbours[m]) for m in self.modalities})
        self.branches = nn.ModuleDict(
            {m: self.make_branch(sizes[m], config.item_branch_layers) for m in self.modalities}
        )
        self.user_graph: AttentionGraph | None = None
        if dataset.user_features is not None and dataset.user_neighbours is not None:
            self.register_buffer("user_features", dataset.user_features.to(dtype), persistent=False)
            self.user_graph = self.make_graph(dataset.user_neighbours)
            self.user_branch = self.make_branch(self.user_features.shape[1], config.user_branch_layers)
        self.fusion = Fusion(config, self.fused)

    def make_graph(self, neighbours: typing.Any) -> AttentionGraph:
        """The attention graph of a neighbour table [n, k], on the device of the features."""
        directed = self.config.knn_graph == "directed"
        graph = AttentionGraph.from_neighbours(neighbours, self.config.attn_heads // ranks(), directed)
        return graph.to(self.backbone.adjacency.device)

    def make_branch(self, d_in: int, layers: int) -> Branch:
        """A branch of graph attention layers by the settings of the config."""
        config = self.config
        return Branch(
            d_in,
            config.recdim,
            layers,
            config.attn_heads,
            config.attn_dropout,
            config.feat_dropout,
            config.branch_dropout,
            bool(config.feat_proj),
            product_dtype(config),
            bool(config.attn_bias),
            config.attn_init,
        )

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError unless heads divide the embedding size, LayerNorm has two numbers and W1 a plan."""
        if config.recdim % config.attn_heads:
            raise UserError(
                f"--recdim {config.recdim} is not divisible by --attn_heads {config.attn_heads}: change "
                "either"
            )
        if config.attn_heads % ranks():
            raise UserError(
                f"--attn_heads {config.attn_heads}: {ranks()} processes cannot share them equally; take a "
                f"multiple of {ranks()}"
            )
        if config.recdim == 1 and config.fuse_norm.startswith("layer"):
            raise UserError(
                f"--recdim 1 with --fuse_norm {config.fuse_norm}: LayerNorm of one number makes all item "
                "vectors equal; take a larger --recdim or --fuse_norm none"
            )
        if config.w1_weight and not uses_plan(config):
            raise UserError(
                f"--w1_weight {config.w1_weight:g} needs a transport plan: take --fusion oat with "
                "--transport full or "
                "plan, or --w1_weight 0"
            )

    @classmethod
    def search_space(cls, config: Config, modalities: Collection[str]) -> tuple[str, ...]:
        """Learning rate, decay, alignment and fusion, without settings that have no effect here."""
        space = ["contrastive_weight=0.01..0.5:log", "modality_decay=1e-3..1:log"]
        if config.contrastive_weight:
            space.append("modality_consistency_weight=0.1..1")
        ranges = {"text": "0.02..0.6:log", "image": "0.01..0.2:log", "audio": "0.01..0.2:log"}
        if config.fusion == "oat":
            space += [f"{FUSION_WEIGHTS[m]}={ranges[m]}" for m in modalities]
        return (
            *super().search_space(config, modalities),
            *space,
            "item_knn_k=5,10,20",
            "fuse_norm=layer_l2,none",
        )

    # ---- representations

    def represent(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """User vectors [U, d], item ID vectors [I, d] and modality vectors {m: [I, d]} (eq. 3-6).

        Given users [v] or items [r] int64, each once, only theirs.
        """
        user, z_id = self.backbone.embeddings(users, items)
        z = self.modality_vectors(z_id, items)
        if self.user_graph is not None:  # sec. 3.4
            eta = self.config.eta
            user = (1 - eta) * user + eta * self.user_branch(self.user_graph, self.user_features, users)
        return user, z_id, z

    def modality_vectors(
        self, z_id: torch.Tensor, items: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Vectors Z^m (eq. 3) of every fused modality: [I, d], or the given rows; z_id: their ID vectors.

        The ID vectors take the place of a modality that is absent from the data (--absent_modality id) or,
        with --missing_fill id, from the item.
        """
        z = {}
        for m in self.fused:
            if m not in self.modalities:
                z[m] = z_id
                continue
            z[m] = self.branches[m](self.graphs[m], self.features(m), items)
            absent = self.replaced_items(m)
            if absent is not None:
                z[m] = torch.where(absent if items is None else absent[items], z_id, z[m])
        return z

    def replaced_items(self, m: str) -> torch.Tensor | None:
        """Which items lack the modality and have their ID vector in its place: [I, 1] bool; None: no item."""
        return getattr(self, f"{m}_absent", None)

    def features(self, m: str) -> torch.Tensor:
        """Frozen features of one modality: [I, d_m]."""
        return getattr(self, f"{m}_features")

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, d] and unified item vectors [I, d] (eq. 14), or the given rows of them."""
        whole = self.config.plan_from != "items"
        user, item, *_ = self.unify(users, items, whole)
        return user, item

    def unify(
        self, users: torch.Tensor | None, items: torch.Tensor | None, whole: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor], Plans]:
        """Users, unified vectors, and the item vectors and plans they are made of, of the given rows.

        whole: plans that are computed anew are those of all items, rather than of the given rows.
        """
        user, z_id, z = self.represent(users, None if whole else items)
        plans = self.fusion.plans(z_id, z)
        item = self.fusion(z_id, z, plans)
        if whole and items is not None:
            item, z_id = item.index_select(0, items), z_id.index_select(0, items)
            z = {m: vectors.index_select(0, items) for m, vectors in z.items()}
        return user, item, z_id, z, plans

    # ---- training

    @classmethod
    def varying(cls, config: Config) -> str:
        """What averages over the distinct items of a batch."""
        if config.w1_weight and config.fusion == "oat":
            return "--w1_weight averages over the items of a batch"
        if uses_plan(config) and config.plan_from == "batch":
            return "--plan_from batch averages over the items of a batch"
        return ""

    @torch.no_grad()
    def begin_step(self, step: int) -> None:
        """Refresh the transport plans every `plan_every` steps, from all items without dropout."""
        config = self.config
        if not uses_plan(config) or step % config.plan_every:
            return
        training = self.training
        self.eval()
        _, z_id = self.backbone.embeddings()
        whole = all_columns(z_id)
        for m, z_m in self.modality_vectors(z_id).items():
            self.fusion.transport(m).refresh(z_m, whole)
        self.train(training)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The total and its terms, from the vectors of the batch's users and items alone."""
        config = self.config
        user, item, z_id, z, plans = self.unify(
            batch.unique_users, batch.unique_items, config.plan_from == "forward"
        )
        terms = {"bpr": batch_bpr(user, item, batch), "norm": self.backbone.norm(batch)}
        loss = terms["bpr"] + config.decay * terms["norm"]
        if config.modality_decay:
            terms["modality_norm"] = total(
                squared_norm((v, batch.pos_index), (v, batch.neg_index))
                for v in self.without_id_vectors(z, batch.unique_items)
            )
            loss = loss + config.modality_decay * terms["modality_norm"]
        if config.contrastive_weight:
            views = [z_id, *(z[m] for m in PAIR_ORDER[config.contrastive_anchor] if m in z)]
            contrastive = self.contrastive(user, item, views, batch)
            terms.update(contrastive)
            loss = loss + config.contrastive_weight * contrastive["contrastive"]
        if config.w1_weight and config.fusion == "oat":
            # Each item of the batch is a sample of the mean in the cost (eq. 10).
            all_ids = all_columns(z_id)
            terms["w1"] = total(self.fusion.transport(m).w1(z[m], all_ids, plans.get(m)) for m in self.fused)
            loss = loss + config.w1_weight * terms["w1"]
        return {"loss": loss, **terms}

    def without_id_vectors(self, z: dict[str, torch.Tensor], items: torch.Tensor) -> list[torch.Tensor]:
        """Modality vectors, with zeros where an ID vector stands in, to which --decay applies already.

        z: {m: [r, own columns]} of the items [r] int64. Returns [r, own columns] for each m with features.
        """
        found = []
        for m in self.modalities:
            absent = self.replaced_items(m)
            found.append(z[m] if absent is None else z[m].masked_fill(absent.index_select(0, items), 0))
        return found

    def contrastive(
        self, user: torch.Tensor, item: torch.Tensor, views: list[torch.Tensor], batch: Batch
    ) -> dict[str, torch.Tensor]:
        """w * (InfoNCE of the modality pairs, eq. 7-8) + (1 - w) * InfoNCE(user, positive), and both terms.

        With --contrastive_sign repel the first is w * (1 - InfoNCE) instead.
        user: [v, d], unique users of the batch; item (fused) and views (ID and modality vectors): [r, d], its
        unique items.
        """
        config, w = self.config, self.config.modality_consistency_weight
        terms: dict[str, torch.Tensor] = {}
        loss = torch.zeros((), device=user.device)
        if w:
            sides = [(batch.unique_pos, batch.pos_index)]
            if config.contrastive_items == "pos_neg":
                sides.append((batch.unique_neg, batch.neg_index))
            pairs = [nce for side in sides for nce in self.modality_pairs(views, *side)]
            terms["modality_nce"] = total(pairs) / (
                len(pairs) if config.contrastive_reduction == "mean" else 1
            )
            attract = config.contrastive_sign == "attract"
            loss = loss + w * (terms["modality_nce"] if attract else 1 - terms["modality_nce"])
        if w < 1:
            terms["user_item_nce"] = info_nce(
                all_columns(user).index_select(0, batch.user_index),
                all_columns(item.index_select(0, batch.unique_pos)),
                config.temperature,
                torch.searchsorted(batch.unique_pos, batch.pos_index),
                dtype=product_dtype(config),
                counts=self.counts(batch.unique_pos, batch.pos_index),
            )
            loss = loss + (1 - w) * terms["user_item_nce"]
        return {"contrastive": loss, **terms}

    def modality_pairs(
        self, views: list[torch.Tensor], rows: torch.Tensor, index: torch.Tensor
    ) -> list[torch.Tensor]:
        """InfoNCE of every pair of views, the ID vectors first, [r, own columns] each (eq. 8).

        rows: [n], the distinct rows that are anchors and candidates; index: [B], the row of each triple.
        """
        views = [directions(all_columns(view.index_select(0, rows))) for view in views]
        counts = self.counts(rows, index)
        return [
            unit_info_nce(a, b, self.config.temperature, dtype=product_dtype(self.config), counts=counts)
            for i, a in enumerate(views)
            for b in views[i + 1 :]
        ]

    def counts(self, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor | None:
        """How often each of the distinct rows [n] of a batch counts in InfoNCE; None: once.

        index: [B], the row of each triple. Rows that pad a batch repeat one before them, and count 0 times.
        """
        if self.config.contrastive_dedup and self.config.cuda_graph == "0":
            return None
        ones = torch.ones(len(index), dtype=self.backbone.user.dtype, device=index.device)
        times = torch.zeros_like(rows, dtype=ones.dtype).index_add_(0, torch.searchsorted(rows, index), ones)
        return times.clamp(max=1) if self.config.contrastive_dedup else times

    # ---- explanations

    @torch.no_grad()
    def item_parts(self) -> dict[str, torch.Tensor]:
        """What ID and modality vectors contribute to the unified item vectors, see Fusion.split.

        A modality that the ID vectors stand in for, of all items or of those that lack it, counts as ID.
        """
        _, _, z_id, z, plans = self.unify(None, None, whole=True)
        parts = self.fusion.split(z_id, z, plans)
        for m in self.modalities:
            absent = self.replaced_items(m)
            if absent is not None:
                parts["id"] = parts["id"] + absent * parts[m]
                parts[m] = ~absent * parts[m]
        for m in set(self.fused) - set(self.modalities):
            parts["id"] = parts["id"] + parts.pop(m)
        return parts if parts["constant"].any() else {m: parts[m] for m in ("id", *self.modalities)}

    def history_part(self) -> HistoryPart | None:
        """LightGCN's, of which the user-user branch leaves the share 1 - eta."""
        part = self.backbone.history_part()
        if part is None or self.user_graph is None:
            return part
        return part._replace(vectors=(1 - self.config.eta) * part.vectors)

    # ---- the log

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Norms, fusion weights, and the figures of each transport plan ("plan/text/mass", ...)."""
        numbers = self.backbone.diagnostics()
        if self.config.fusion == "oat":
            for m, weight in zip(self.fused, self.fusion.weights, strict=True):
                numbers[f"fusion/{m}"] = weight
                for name, value in self.fusion.transport(m).diagnostics().items():
                    numbers[f"plan/{m}/{name}"] = value
            numbers["fusion/id"] = 1 - self.fusion.weights.sum()
        return numbers

    def images(self) -> dict[str, Heatmap]:
        """Each transport plan."""
        if not uses_plan(self.config):
            return {}
        plans = {m: self.fusion.transport(m).plan for m in self.fused}
        return {
            f"plan/{m}": Heatmap(plan, f"dimension of {m}", "dimension of ID") for m, plan in plans.items()
        }

    # ---- users and items that were not in training

    def new_user_vectors(
        self, histories: sp.csr_matrix, item: torch.Tensor
    ) -> tuple[torch.Tensor, list[str]]:
        """LightGCN's vectors of new users; with --user_text_feat mean, mixed with the user-user branch's.

        With --layer 0 they are means of unified item vectors instead, see Recommender.
        """
        if self.config.layer:
            user, notes = self.backbone.new_user_vectors(histories, item)
        else:
            user, notes = super().new_user_vectors(histories, item)
        if self.user_graph is None:
            return user, notes
        user = (1 - self.config.eta) * user  # as of known users; the neighbourhood term adds to it
        if self.config.user_text_feat != "mean":
            return user, ["note: new users have no text features; their vectors omit the user-user branch"]
        mean = sp.diags(1 / histories.sum(1).A1) @ histories
        text = sparse_like(mean, item) @ self.features("text").float()
        return user + self.config.eta * self.new_user_branch(text), notes

    def new_user_branch(self, text: torch.Tensor) -> torch.Tensor:
        """The user-user branch's vectors [n, d] of new users by their text features [n, d_in].

        As in the graph, users without text are no neighbours of others, and have none but themselves.
        """
        assert self.user_graph is not None
        known = self.user_features.any(1)
        known = known if known.any() else ~known
        z, _ = self.user_branch.attend(
            self.user_graph, self.user_features, text, self.config.user_knn_k, known
        )
        alone = self.user_branch(self.make_graph(np.zeros((1, 1), np.int64)), torch.zeros_like(text[:1]))
        return torch.where(text.any(1, keepdim=True), z, alone)

    def feature_sizes(self) -> dict[str, int]:
        """{modality: dimension of its features}."""
        return {m: self.features(m).shape[1] for m in self.modalities}

    def cold_item_vectors(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unified vectors [n, d] of items known by their features alone.

        They attend to the nearest items of the catalogue that were in training, by cosine similarity (eq.
        2-3), without being attended to. In place of the ID vector that they lack stands the mean direction of
        the ID vectors of these at the mean of their lengths; then they are fused as any item (eq. 12-14).
        """
        _, z_id = self.backbone.embeddings()
        z, neighbours = {}, []
        for m in self.modalities:
            branch, graph = typing.cast(Branch, self.branches[m]), typing.cast(AttentionGraph, self.graphs[m])
            z[m], nearest = branch.attend(
                graph, self.features(m), features[m], self.config.item_knn_k, self.known_items(m)
            )
            neighbours.append(nearest)
        stand_in = mean_direction(z_id[torch.cat(neighbours, 1)])  # of [n, modalities * k, d]
        has_own_plans = self.config.plan_from != "items"  # those of the vectors of this pass
        plans = self.fusion.plans(z_id, self.modality_vectors(z_id)) if has_own_plans else None
        return self.fusion(stand_in, {m: z.get(m, stand_in) for m in self.fused}, plans)
