"""RecGOAT's loss and evaluation written directly from the formulas: the baseline of the benchmarks.

    graphs = textbook.graphs_of(model)
    loss = textbook.loss(model, graphs, users, pos, neg)    # that of model.loss(batch), up to rounding

The functions take the parameters of a model.RecGOAT and share nothing else with it: sparse COO products with
autograd, attention by gather and scatter, the [I, d, d] cost of eq. 10, Sinkhorn from zero in every step,
full score matrices, and metrics user by user. Equation numbers are those of the paper (arXiv 2602.00682).
"""

import math
import typing
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from layers.attention import SLOPE, AttentionGraph, Branch, GraphAttention
from model import RecGOAT, Transport
from models.lightgcn import LightGCN
from world import Config

METRICS = ("recall", "ndcg", "precision", "map", "hitrate")


class Edges(typing.NamedTuple):
    """Edges of a graph, from sources to targets."""

    target: torch.Tensor  # [E] int64
    source: torch.Tensor  # [E] int64


class Graphs(typing.NamedTuple):
    """The graphs of a model as plain edges."""

    adjacency: torch.Tensor  # normalised user-item graph, coalesced COO [U + I, U + I]
    edges: dict[str, Edges]  # modality -> item graph


def graphs_of(model: RecGOAT) -> Graphs:
    """The graphs of a model, without the layout that its kernels need."""
    graphs = {m: typing.cast(AttentionGraph, graph) for m, graph in model.graphs.items()}
    edges = {m: Edges(graph.target, graph.source) for m, graph in graphs.items()}
    return Graphs(model.backbone.adjacency.to_sparse_coo().coalesce(), edges)


# ---------------------------------------------------------------- representations


def light_gcn(backbone: LightGCN, adjacency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """User vectors [U, d] and item vectors [I, d]: the mean of layers 0..L (LightGCN, eq. 4-5)."""
    layers = [torch.cat([backbone.user, backbone.item])]
    for _ in range(backbone.config.layer):
        layers.append(torch.sparse.mm(adjacency, layers[-1]))
    user, item = torch.stack(layers, 1).mean(1).split([len(backbone.user), len(backbone.item)])
    return user, item


def graph_attention(layer: GraphAttention, edges: Edges, x: torch.Tensor) -> torch.Tensor:
    """Multi-head graph attention (eq. 3), [n, d_in] -> [n, d]."""
    target, source = edges
    n, heads = len(x), layer.heads
    h = (x @ layer.weight.T).view(n, heads, -1)
    target_scores, source_scores = (h * layer.a_dst).sum(-1), (h * layer.a_src).sum(-1)
    scores = F.leaky_relu(target_scores[target] + source_scores[source], SLOPE)  # [E, H]
    # Softmax over the edges of each target.
    index = target[:, None].expand_as(scores)
    maximum = torch.full((n, heads), -math.inf, device=x.device)
    maximum = maximum.scatter_reduce(0, index, scores.detach(), "amax")
    weights = (scores - maximum[target]).exp()
    weights = weights / torch.zeros(n, heads, device=x.device).scatter_add(0, index, weights)[target]
    weights = F.dropout(weights, layer.attn_dropout.p, layer.attn_dropout.training)
    messages = weights[:, :, None] * h[source]  # [E, H, d / H]
    return torch.zeros_like(h).index_add(0, target, messages).flatten(1) + layer.bias


def modality_vectors(branch: Branch, edges: Edges, x: torch.Tensor) -> torch.Tensor:
    """Attention layers of one modality, each followed by LeakyReLU: features [I, d_m] -> [I, d]."""
    x = branch.project(x)
    for layer in branch.layers:
        attended = graph_attention(typing.cast(GraphAttention, layer), edges, branch.before(x))
        x = branch.after(F.leaky_relu(attended, 0.2))
    return x


def represent(model: RecGOAT, graphs: Graphs) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """User vectors [U, d], item ID vectors [I, d] and modality vectors {m: [I, d]}."""
    user, z_id = light_gcn(model.backbone, graphs.adjacency)
    branches = {m: typing.cast(Branch, branch) for m, branch in model.branches.items()}
    return (
        user,
        z_id,
        {m: modality_vectors(branches[m], graphs.edges[m], model.features(m)) for m in branches},
    )


# ---------------------------------------------------------------- transport and fusion


def transport_plan(config: Config, z_m: torch.Tensor, z_id: torch.Tensor) -> torch.Tensor:
    """T0 [d, d] (eq. 10-11): the cost through an [I, d, d] tensor, then Sinkhorn from zero."""
    difference = z_m[:, :, None] - z_id[:, None, :]
    cost = (difference.abs() if config.ot_cost == "l1" else difference.square()).mean(0)
    centred = cost - cost.mean(0) - cost.mean(1, keepdim=True) + cost.mean()
    scaled = cost / centred.square().mean().sqrt() / config.ot_epsilon
    d = len(cost)
    column = torch.zeros(d, device=cost.device)
    for _ in range(config.sinkhorn_iters):
        row = -math.log(d) - torch.logsumexp(column - scaled, 1)
        column = -math.log(d) - torch.logsumexp(row[:, None] - scaled, 0)
    return torch.exp(row[:, None] + column - scaled)


def fuse(model: RecGOAT, z_id: torch.Tensor, z: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Unified vectors [I, d] of all items (eq. 12-14)."""
    fusion, d = model.fusion, z_id.shape[1]
    fused = (1 - fusion.weights.sum()) * z_id
    for weight, m in zip(fusion.weights, model.modalities, strict=True):
        with torch.no_grad():
            plan = transport_plan(model.config, z[m], z_id)
        residual = typing.cast(Transport, fusion.transports[m]).residual
        fused = fused + weight * (z[m] @ (d * plan + residual))
    return F.normalize(fusion.dropout(fusion.layer_norm(fused)), dim=1)


# ---------------------------------------------------------------- loss


def info_nce(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy over the full matrix of cosine similarities (eq. 7). a, b: [n, d]."""
    scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(a), device=a.device))


def loss(
    model: RecGOAT, graphs: Graphs, users: torch.Tensor, pos: torch.Tensor, neg: torch.Tensor
) -> torch.Tensor:
    """BPR + decay * norm + contrastive_weight * sum of InfoNCE over the pairs of views, as in the paper.

    users, pos, neg: [B] int64, training triples.
    """
    config, ids = model.config, model.backbone
    user, z_id, z = represent(model, graphs)
    item = fuse(model, z_id, z)
    bpr = -F.logsigmoid((user[users] * item[pos]).sum(1) - (user[users] * item[neg]).sum(1)).mean()
    vectors = (ids.user[users], ids.item[pos], ids.item[neg])
    norm = torch.stack([rows.square().sum() for rows in vectors]).sum() / len(users)
    views = [view[pos.unique()] for view in (z_id, *z.values())]
    pairs = [(a, b) for i, a in enumerate(views) for b in views[i + 1 :]]
    contrastive = torch.stack([info_nce(a, b, config.temperature) for a, b in pairs]).sum()
    return bpr + config.decay * norm + config.contrastive_weight * contrastive


# ---------------------------------------------------------------- evaluation


def evaluate(
    user: torch.Tensor,
    item: torch.Tensor,
    train: Mapping[int, list[int]],
    relevant: Mapping[int, list[int]],
    ks: Sequence[int],
) -> dict[str, float]:
    """The metrics of training.ranking.evaluate, user by user.

    user: [U, d]; item: [I, d]; train: {user: items to mask}; relevant: {user: relevant items}; ks: cut-offs.
    """
    sums = {f"{name}@{k}": 0.0 for k in ks for name in METRICS}
    for u, items in relevant.items():
        scores = item @ user[u]
        scores[train.get(u, [])] = -math.inf
        ranked = scores.topk(max(ks)).indices.tolist()
        for k in ks:
            for name, value in user_metrics(ranked[:k], set(items)).items():
                sums[f"{name}@{k}"] += value
    return {name: total / len(relevant) for name, total in sums.items()}


def user_metrics(ranked: list[int], relevant: set[int]) -> dict[str, float]:
    """Metrics of one user's list of the first K items: {metric: value}."""
    hits, ideal = [item in relevant for item in ranked], min(len(relevant), len(ranked))
    dcg = sum(1 / math.log2(rank + 2) for rank, hit in enumerate(hits) if hit)
    ideal_dcg = sum(1 / math.log2(rank + 2) for rank in range(ideal))
    precision_at_hits = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return {
        "recall": sum(hits) / len(relevant),
        "ndcg": dcg / ideal_dcg,
        "precision": sum(hits) / len(ranked),
        "map": sum(precision_at_hits) / ideal,
        "hitrate": float(any(hits)),
    }
