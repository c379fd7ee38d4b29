"""RecGOAT's training step and evaluation as one writes them down from the formulas: the yardstick of the benchmarks.

Every function takes the parameters of a model.RecGOAT, so that its loss and gradients can be compared with the model's.
Nothing is shared with it but the parameters: sparse COO products with autograd, attention by gather and scatter, the
[I, d, d] cost of eq. 9, Sinkhorn from its start at every step, full score matrices, metrics user by user.
"""

import math

import torch
from torch.nn import functional as F


def coo_adjacency(adjacency):
    """The normalised user-item graph as a coalesced COO matrix."""
    return adjacency.to_sparse_coo().coalesce()


def edge_index(graph):
    """Edges (target, source) of an AttentionGraph, int64 [E] each."""
    return graph.target, graph.source


def light_gcn(model, adjacency):
    """Mean of the stacked layers 0..L (LightGCN, eq. 4-5)."""
    layers = [torch.cat([model.user, model.item])]
    for _ in range(model.layers):
        layers.append(torch.sparse.mm(adjacency, layers[-1]))
    return torch.stack(layers, 1).mean(1).split([len(model.user), len(model.item)])


def graph_attention(layer, edges, x):
    """Multi-head graph attention (eq. 3): gather both ends of every edge, softmax by scatter, scatter the messages."""
    target, source = edges
    n, heads = len(x), layer.heads
    h = (x @ layer.weight.T).view(n, heads, -1)
    scores = F.leaky_relu(
        (h * layer.a_dst).sum(-1)[target] + (h * layer.a_src).sum(-1)[source], layer.slope
    )  # [E, H]
    where = target[:, None].expand_as(scores)
    top = torch.full((n, heads), -math.inf, device=x.device).scatter_reduce(0, where, scores.detach(), "amax")
    weights = (scores - top[target]).exp()
    weights = weights / torch.zeros(n, heads, device=x.device).scatter_add(0, where, weights)[target]
    weights = F.dropout(weights, layer.attn_dropout.p, layer.attn_dropout.training)
    messages = weights[:, :, None] * h[source]  # [E, H, d / H]
    return torch.zeros_like(h).index_add(0, target, messages).flatten(1) + layer.bias


def branch(module, edges, x):
    """Attention layers of one modality, each followed by LeakyReLU."""
    x = module.project(x)
    for layer in module.layers:
        x = module.after(F.leaky_relu(graph_attention(layer, edges, module.before(x)), 0.2))
    return x


def transport_plan(config, z_m, z_id):
    """T0 of eq. 9-11: the cost through an [I, d, d] tensor, then Sinkhorn with all its iterations from zero."""
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


def info_nce(a, b, temperature):
    """Cross-entropy over the full matrix of cosine similarities (eq. 7)."""
    scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(a), device=a.device))


def represent(model, graphs):
    """User vectors, item ID vectors, item modality vectors. graphs: {"adjacency": COO, modality: edge index}."""
    user, z_id = light_gcn(model.backbone, graphs["adjacency"])
    return (
        user,
        z_id,
        {m: branch(model.branches[m], graphs[m], getattr(model, f"{m}_features")) for m in model.modalities},
    )


def fuse(model, z_id, z):
    """Transport and fusion of all items (eq. 12-14)."""
    d, fused = z_id.shape[1], 0.0
    for weight, m in zip(model.fusion.weights, model.modalities):
        with torch.no_grad():
            plan = transport_plan(model.config, z[m], z_id)
        fused = fused + weight * (z[m] @ (d * plan + model.fusion.transports[m].residual))
    fused = fused + (1 - model.fusion.weights.sum()) * z_id
    return F.normalize(model.fusion.dropout(model.fusion.layer_norm(fused)), dim=1)


def loss(model, graphs, users, pos, neg):
    """BPR + decay * norm + contrastive weight * sum of InfoNCE over the modality pairs, for the settings of the paper."""
    user, z_id, z = represent(model, graphs)
    item = fuse(model, z_id, z)
    bpr = -F.logsigmoid((user[users] * item[pos]).sum(1) - (user[users] * item[neg]).sum(1)).mean()
    ids = model.backbone
    norm = (
        ids.user[users].square().sum() + ids.item[pos].square().sum() + ids.item[neg].square().sum()
    ) / len(users)
    items = pos.unique()
    views = [z_id, *z.values()]
    pairs = [
        info_nce(a[items], b[items], model.config.temperature)
        for i, a in enumerate(views)
        for b in views[i + 1 :]
    ]
    return bpr + model.config.decay * norm + model.config.contrastive_weight * sum(pairs)


def evaluate(user, item, train, relevant, ks):
    """The metrics of utils.ranking_metrics user by user. train: user -> masked items; relevant: user -> relevant items, lists."""
    sums = {f"{name}@{k}": 0.0 for k in ks for name in ("recall", "ndcg", "precision", "map", "hitrate")}
    for u, wanted in relevant.items():
        scores = item @ user[u]
        scores[train.get(u, [])] = -math.inf
        ranked, wanted = scores.topk(max(ks)).indices.tolist(), set(wanted)
        for k in ks:
            hits, best = [i in wanted for i in ranked[:k]], min(len(wanted), k)
            values = (
                sum(hits) / len(wanted),
                sum(1 / math.log2(r + 2) for r, hit in enumerate(hits) if hit)
                / sum(1 / math.log2(r + 2) for r in range(best)),
                sum(hits) / k,
                sum(sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit) / best,
                float(any(hits)),
            )
            for name, value in zip(("recall", "ndcg", "precision", "map", "hitrate"), values):
                sums[f"{name}@{k}"] += value
    return {name: value / len(relevant) for name, value in sums.items()}
