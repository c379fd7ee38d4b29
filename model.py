"""The models: matrix factorisation, LightGCN, and RecGOAT (arXiv 2602.00682; equation numbers are the paper's).

Every model offers the same three things:
    user, item = model.embeddings()          # [U, d], [I, d]; the score of (u, i) is user[u] . item[i]
    terms = model.loss(users, pos, neg)      # {"loss": total, "bpr": ..., ...}, 0-dim tensors; users, pos, neg are [B]
    numbers = model.diagnostics()            # {name: 0-dim tensor} about its insides, for the log

U users, I items, d embedding size, B batch, H heads, m a modality (text, image, audio).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from utils import symmetric_spmm
from world import MODALITIES


# ---------------------------------------------------------------- losses

def bpr_loss(user, positive, negative):
    """Bayesian personalised ranking (Rendle 2009, eq. 19): mean of -log sigmoid(u.p - u.n) over [B, d] vectors."""
    return F.softplus((user * (negative - positive)).sum(1)).mean()


def squared_norm(*vectors):
    """Mean over the batch of the summed squared norms of [B, d] vectors (LightGCN's regulariser, without its 1/2)."""
    return sum(v.square().sum() for v in vectors) / len(vectors[0])


class _InfoNCE(torch.autograd.Function):
    """Loss and gradient in one pass over row blocks, so the [n, m] scores are computed once and never kept."""

    @staticmethod
    def forward(ctx, a, b, target, temperature, block):
        a = a / temperature
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
        loss = a.new_zeros(())
        for start in range(0, len(a), block):
            rows = slice(start, start + block)
            scores = a[rows] @ b.T                                      # [block, m]
            positive = scores.gather(1, target[rows, None])
            top = scores.amax(1, keepdim=True)
            total = scores.sub_(top).exp_().sum(1, keepdim=True)
            loss += (total.log() + top - positive).sum()
            probability = scores.div_(total)
            grad_a[rows] = probability @ b
            grad_b.addmm_(probability.T, a[rows])
        grad_a -= b.index_select(0, target)
        grad_b.index_add_(0, target, a, alpha=-1)
        ctx.save_for_backward(grad_a.div_(len(a) * temperature), grad_b.div_(len(a)))
        return loss / len(a)

    @staticmethod
    def backward(ctx, grad):
        grad_a, grad_b = ctx.saved_tensors
        return grad * grad_a, grad * grad_b, None, None, None


def info_nce(a, b, temperature, target=None, block=512):
    """InfoNCE with cosine similarity (eq. 7): mean over rows of -log softmax(cos(a_r, b_*) / temperature)[target_r].

    a: [n, d]; b: [m, d], the candidates; target: [n] int64, the row of b that belongs to each row of a (default: r).
    """
    if target is None:
        target = torch.arange(len(a), device=a.device)
    return _InfoNCE.apply(F.normalize(a, dim=1), F.normalize(b, dim=1), target, temperature, block)


# ---------------------------------------------------------------- ID models

class MF(nn.Module):
    """Matrix factorisation trained with BPR. Embeddings start from N(0, 0.1^2)."""

    def __init__(self, config, dataset):
        super().__init__()
        self.decay = config.decay
        self.user = nn.Parameter(0.1 * torch.randn(dataset.interactions.n_users, config.recdim))   # [U, d]
        self.item = nn.Parameter(0.1 * torch.randn(dataset.interactions.n_items, config.recdim))   # [I, d]

    def embeddings(self):
        """User vectors [U, d] and item vectors [I, d]."""
        return self.user, self.item

    def loss(self, users, pos, neg):
        """BPR and the weighted norm of the layer-0 embeddings of the batch. users, pos, neg: [B]."""
        user, item = self.embeddings()
        bpr = bpr_loss(user.index_select(0, users), item.index_select(0, pos), item.index_select(0, neg))
        norm = self.layer0_norm(users, pos, neg)
        return {"loss": bpr + self.decay * norm, "bpr": bpr, "norm": norm}

    def layer0_norm(self, users, pos, neg):
        """Mean squared norm of the layer-0 embeddings of a batch of triples."""
        return squared_norm(self.user.index_select(0, users), self.item.index_select(0, pos), self.item.index_select(0, neg))

    def diagnostics(self):
        """Mean norm of the user and item embeddings."""
        return {"norm/user": self.user.norm(dim=1).mean(), "norm/item": self.item.norm(dim=1).mean()}


class LightGCN(MF):
    """LightGCN (He 2020, eq. 4-5): the mean of layers 0..L of E <- A E, with A the normalised user-item graph."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.layers = config.layer
        self.adjacency = dataset.adjacency

    def embeddings(self):
        """Propagated user vectors [U, d] and item vectors [I, d]."""
        layer = mean = torch.cat([self.user, self.item])               # [U + I, d]
        for _ in range(self.layers):
            layer = symmetric_spmm(self.adjacency, layer)
            mean = mean + layer
        return (mean / (self.layers + 1)).split([len(self.user), len(self.item)])


# ---------------------------------------------------------------- graph attention

class _Attention(torch.autograd.Function):
    """Attention-weighted sum over neighbours. Keeps E * H weights for the backward pass, never [E, d] messages."""

    @staticmethod
    def forward(ctx, h, s_dst, s_src, graph, slope, dropout):
        """h: [n H, c]; s_dst, s_src: [n H]; returns [n H, c]."""
        scores = s_dst.index_select(0, graph.row) + s_src.index_select(0, graph.col)      # [E H]
        positive = scores > 0
        scores = F.leaky_relu_(scores, slope)
        top = torch.segment_reduce(scores, "max", offsets=graph.crow)
        weights = scores.sub_(top.index_select(0, graph.row)).exp_()
        total = torch.segment_reduce(weights, "sum", offsets=graph.crow)
        weights /= total.index_select(0, graph.row)
        keep = (torch.rand_like(weights) >= dropout) if dropout else None
        used = weights * keep / (1 - dropout) if dropout else weights
        out = graph.matrix(used) @ h
        ctx.graph, ctx.slope, ctx.dropout = graph, slope, dropout
        ctx.save_for_backward(h, weights, positive, keep, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        h, weights, positive, keep, out = ctx.saved_tensors
        graph, grad = ctx.graph, grad.contiguous()
        used = weights * keep / (1 - ctx.dropout) if ctx.dropout else weights
        grad_h = graph.matrix(used.index_select(0, graph.transposed)) @ grad
        # softmax: w (dL/dw - sum w dL/dw), where the sum over a node's edges is grad . out
        products = torch.sparse.sampled_addmm(graph.matrix(torch.zeros_like(used)), grad, h.T, beta=0.0).values()
        grad_scores = (used * products).sub_(weights * (grad * out).sum(1).index_select(0, graph.row))
        grad_scores = torch.where(positive, grad_scores, ctx.slope * grad_scores)
        grad_dst = torch.segment_reduce(grad_scores, "sum", offsets=graph.crow)
        grad_src = torch.segment_reduce(grad_scores.index_select(0, graph.transposed), "sum", offsets=graph.crow)
        return grad_h, grad_dst, grad_src, None, None, None


class GraphAttention(nn.Module):
    """One multi-head graph attention layer (Velickovic 2018, eq. 3) before its non-linearity.

    out_i = concat over h of sum_j alpha_ij^h W^h x_j + b, with alpha_ij^h the softmax over the neighbours j of i of
    LeakyReLU(a_dst^h . W^h x_i + a_src^h . W^h x_j), slope 0.2; neighbours include i. [n, d_in] -> [n, d].
    """

    def __init__(self, d_in, d, heads, attn_dropout=0.0, slope=0.2):
        super().__init__()
        self.heads, self.slope, self.attn_dropout = heads, slope, nn.Dropout(attn_dropout)
        self.weight = nn.Parameter(torch.empty(d, d_in))
        self.a_src = nn.Parameter(torch.empty(heads, d // heads))
        self.a_dst = nn.Parameter(torch.empty(heads, d // heads))
        self.bias = nn.Parameter(torch.zeros(d))
        for parameter in (self.weight, self.a_src, self.a_dst):
            nn.init.xavier_uniform_(parameter)

    def forward(self, graph, x):
        """graph: AttentionGraph of n nodes with the same number of heads; x: [n, d_in]."""
        h = F.linear(x, self.weight)                                    # [n, d]
        by_head = h.view(len(x), self.heads, -1)                        # [n, H, d / H]
        s_dst, s_src = (by_head * self.a_dst).sum(-1).flatten(), (by_head * self.a_src).sum(-1).flatten()
        dropout = self.attn_dropout.p if self.attn_dropout.training else 0.0
        out = _Attention.apply(h.view(len(x) * self.heads, -1), s_dst, s_src, graph, self.slope, dropout)
        return out.view(len(x), -1) + self.bias


class Branch(nn.Module):
    """Graph attention layers over one modality's features, LeakyReLU(0.2) after each (eq. 3): [n, d_m] -> [n, d]."""

    def __init__(self, config, d_in, layers):
        super().__init__()
        d = config.recdim
        self.project = nn.Linear(d_in, d) if config.feat_proj else nn.Identity()
        sizes = [d if config.feat_proj else d_in] + [d] * (layers - 1)
        self.layers = nn.ModuleList(GraphAttention(size, d, config.attn_heads, config.attn_dropout) for size in sizes)
        self.before, self.after = nn.Dropout(config.feat_dropout), nn.Dropout(config.branch_dropout)

    def forward(self, graph, x):
        """graph: AttentionGraph over the rows of x [n, d_m]."""
        x = self.project(x)
        for layer in self.layers:
            x = self.after(F.leaky_relu(layer(graph, self.before(x)), 0.2))
        return x


# ---------------------------------------------------------------- optimal transport between feature dimensions

def l1_cost(x, y):
    """C[i, j] = mean over rows b of |x[b, i] - y[b, j]| (eq. 9). x: [n, p], y: [n, q] -> [p, q], in O(n (p + q) + p q) memory."""
    return _L1Cost.apply(x, y)


class _L1Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return torch.cdist(x.T.contiguous(), y.T.contiguous(), p=1) / len(x)

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        grad = grad / len(x)
        grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
        for i in range(x.shape[1]):                                     # one [n, q] sign matrix at a time
            sign = torch.sign(x[:, i, None] - y)
            grad_x[:, i] = sign @ grad[i]
            grad_y -= sign * grad[i]
        return grad_x, grad_y


def squared_cost(x, y):
    """C[i, j] = mean over rows b of (x[b, i] - y[b, j])^2, from second moments. x: [n, p], y: [n, q] -> [p, q]."""
    cross = x.T @ y / len(x)
    return (x.square().mean(0)[:, None] + y.square().mean(0) - 2 * cross).clamp_min(0)


COSTS = {"l1": l1_cost, "squared": squared_cost}


def cost_unit(cost, unit):
    """What epsilon is measured in: 1 (absolute), the mean of cost [p, q], or its spread.

    A plan does not change when a constant is added to a row or a column of the cost, so the spread is the standard
    deviation of the cost without its row and column means. Where one side is far longer than the other (ID vectors
    grow in training, modality vectors do not), those means are nearly all of the cost, and an epsilon relative to the
    mean would flatten the plan.
    """
    if unit == "absolute":
        return 1.0
    if unit == "mean":
        return cost.mean().clamp_min(1e-30)
    return (cost - cost.mean(0) - cost.mean(1, keepdim=True) + cost.mean()).square().mean().sqrt().clamp_min(1e-30)


def sinkhorn_log(cost, epsilon, iterations, start=None, tolerance=1e-4, check_every=10):
    """Entropy-regularised optimal transport in the log domain with uniform marginals (Cuturi 2013; eq. 10-11).

    cost: [p, q]; epsilon: in units of the cost; start: column potential [q] of an earlier call, to begin nearer.
    Stops early once the row marginals are within `tolerance` (relative, summed over rows) of uniform.
    Returns the plan [p, q] (mass 1, exact column marginals) and the column potential [q].
    """
    p, q = cost.shape
    scaled = cost / epsilon
    column = torch.zeros(q, dtype=cost.dtype, device=cost.device) if start is None else start / epsilon
    for step in range(1, iterations + 1):
        row = -torch.logsumexp(column - scaled, 1) - math.log(p)
        column = -torch.logsumexp(row[:, None] - scaled, 0) - math.log(q)
        if step % check_every == 0 or step == iterations:
            plan = torch.exp(row[:, None] + column - scaled)
            if (plan.sum(1) - 1 / p).abs().sum() <= tolerance:
                break
    return plan, column * epsilon


def sinkhorn_exp(cost, epsilon, iterations):
    """Plain Sinkhorn-Knopp on exp(-cost / epsilon) as the released code runs it. Underflows when cost >> epsilon."""
    p, q = cost.shape
    kernel = torch.exp(-cost / epsilon)
    column = torch.full((q,), 1 / q, dtype=cost.dtype, device=cost.device)
    for _ in range(iterations):
        row = (1 / p) / (kernel @ column + 1e-8)
        column = (1 / q) / (kernel.T @ row + 1e-8)
    return row[:, None] * kernel * column


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
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))
        self.scale = d if config.plan_scale == "barycentric" else 1

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

    def forward(self, z_m, z_id):
        """z_m, z_id: [I, d] -> transported z_m [I, d] (eq. 13)."""
        kind = self.config.transport
        if kind == "none":
            return z_m
        if kind == "residual":
            return z_m @ self.residual
        if self.training:
            if self.age % self.config.plan_every == 0:
                self.refresh(z_m, z_id)
            self.age += 1
        plan = self.scale * self.plan
        return z_m @ (plan + self.residual if kind == "full" else plan)

    def w1(self, z_m, z_id):
        """<T0, C>, with gradients through the cost: the 1-Wasserstein distance of eq. 11 (regularised plan)."""
        return (self.plan * self.cost(z_m, z_id)).sum()

    def diagnostics(self, z_m, z_id):
        """W1, mass, entropy (in units of its largest value, 2 ln d) of T0, marginal error, ||Z s T0|| / ||Z||."""
        plan, d = self.plan, len(self.plan)
        mass = plan.sum()
        entropy = -torch.special.xlogy(plan, plan).sum() / (2 * math.log(d))
        moved = self.scale * (z_m @ plan)
        return {"w1": self.w1(z_m, z_id), "mass": mass, "entropy": entropy,
                "row_error": (plan.sum(1) - 1 / d).abs().sum(), "ratio": moved.norm() / z_m.norm(),
                "residual_ratio": (z_m @ self.residual).norm() / z_m.norm()}


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
            self.weights = nn.Parameter(torch.tensor([weights[m] for m in modalities]),
                                        requires_grad=bool(config.learn_fusion_weights))
        self.layer_norm = nn.LayerNorm(d) if self.norm.startswith("layer") else nn.Identity()
        self.dropout = nn.Dropout(config.fuse_drop)

    def forward(self, z_id, z):
        """z_id: [I, d]; z: {m: [I, d]} -> unified item vectors [I, d]."""
        parts = [z_id, *(self.transports[m](z[m], z_id) if self.mode == "oat" else z[m] for m in self.modalities)]
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
        for m in self.modalities:
            self.register_buffer(f"{m}_features", dataset.features[m], persistent=False)
        self.branches = nn.ModuleDict({m: Branch(config, dataset.features[m].shape[1], config.item_branch_layers)
                                       for m in self.modalities})
        self.register_buffer("user_features", dataset.user_features, persistent=False)
        if self.user_graph is not None:
            self.user_branch = Branch(config, dataset.user_features.shape[1], config.user_branch_layers)
        self.fusion = Fusion(config, self.modalities)

    def represent(self):
        """User vectors [U, d], item ID vectors [I, d], item modality vectors {m: [I, d]} before alignment (eq. 3-6)."""
        user, z_id = self.backbone.embeddings()
        z = {m: self.branches[m](self.graphs[m], getattr(self, f"{m}_features")) for m in self.modalities}
        if self.user_graph is not None:
            eta = self.config.eta
            user = (1 - eta) * user + eta * self.user_branch(self.user_graph, self.user_features)
        return user, z_id, z

    def embeddings(self):
        """User vectors [U, d] and unified item vectors [I, d] (eq. 14)."""
        user, z_id, z = self.represent()
        return user, self.fusion(z_id, z)

    def loss(self, users, pos, neg):
        """The total and its terms. users, pos, neg: [B]."""
        config = self.config
        user, z_id, z = self.represent()
        item = self.fusion(z_id, z)
        bpr = bpr_loss(user.index_select(0, users), item.index_select(0, pos), item.index_select(0, neg))
        norm = self.backbone.layer0_norm(users, pos, neg)
        terms = {"bpr": bpr, "norm": norm}
        total = bpr + config.decay * norm
        if config.modality_decay:
            terms["modality_norm"] = sum(squared_norm(v.index_select(0, pos), v.index_select(0, neg)) for v in z.values())
            total = total + config.modality_decay * terms["modality_norm"]
        if config.contrastive_weight:
            contrastive = self.contrastive(user, item, z_id, z, users, pos, neg)
            terms.update(contrastive)
            total = total + config.contrastive_weight * contrastive["contrastive"]
        if config.w1_weight and config.fusion == "oat":
            terms["w1"] = sum(self.fusion.transports[m].w1(z[m], z_id) for m in self.modalities)
            total = total + config.w1_weight * terms["w1"]
        return {"loss": total, **terms}

    def contrastive(self, user, item, z_id, z, users, pos, neg):
        """w * (InfoNCE over the modality pairs, eq. 7-8) + (1 - w) * InfoNCE(user, positive item). Terms as a dict."""
        config, w = self.config, self.config.modality_consistency_weight
        terms, total = {}, 0.0
        if w:
            batches = [pos, neg] if config.contrastive_items == "pos_neg" else [pos]
            pairs = [loss for batch in batches for loss in self.modality_pairs(z_id, z, batch)]
            terms["modality_nce"] = sum(pairs) / (len(pairs) if config.contrastive_reduction == "mean" else 1)
            # the released code minimises the mean over pairs of (1 - InfoNCE); the constant 1 does not matter
            total = total + (w if config.contrastive_sign == "attract" else -w) * terms["modality_nce"]
        if w < 1:
            if config.contrastive_dedup:
                candidates, target = pos.unique(return_inverse=True)
            else:
                candidates, target = pos, None
            terms["user_item_nce"] = info_nce(user.index_select(0, users), item.index_select(0, candidates),
                                              config.temperature, target)
            total = total + (1 - w) * terms["user_item_nce"]
        return {"contrastive": total, **terms}

    def modality_pairs(self, z_id, z, items):
        """InfoNCE of every pair among (id, text, image, audio) at these items, a list (eq. 8)."""
        if self.config.contrastive_dedup:
            items = items.unique()
        views = [view.index_select(0, items) for view in (z_id, *(z[m] for m in self.modalities))]
        return [info_nce(a, b, self.config.temperature) for i, a in enumerate(views) for b in views[i + 1:]]

    def diagnostics(self):
        """Norms, fusion weights, and what each transport plan looks like ("plan/text/mass", ...)."""
        _, z_id, z = self.represent()
        numbers = self.backbone.diagnostics()
        if self.config.fusion == "oat":
            for weight, m in zip(self.fusion.weights, self.modalities):
                numbers[f"fusion/{m}"] = weight
                numbers.update({f"plan/{m}/{name}": value
                                for name, value in self.fusion.transports[m].diagnostics(z[m], z_id).items()})
            numbers["fusion/id"] = 1 - self.fusion.weights.sum()
        return numbers


MODELS = {"mf": MF, "lgn": LightGCN, "lgn_mm": RecGOAT}


def make_model(config, dataset, device):
    """The model that config names, on device."""
    return MODELS[config.model](config, dataset).to(device)
