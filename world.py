"""Every setting of a run, once, with its default, help and allowed values; the device and the seeds.

    config = Config(dataset="demo", model="lgn", recdim=32)
    device = choose_device(config)

The command line (parse.py) is made from the fields of `Config`, without importing torch, which takes seconds.
Defaults follow the paper (arXiv 2602.00682; equation numbers are the paper's) wherever it pays to; `RECIPES`
has the settings of the literal paper and of the authors' released code.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import timeit
import typing
from collections.abc import Mapping

import numpy as np

from utils import UserError

if typing.TYPE_CHECKING:
    import torch

GROUPS = ("data", "model", "alignment", "training", "evaluation", "run")
MODALITIES = ("text", "image", "audio")
MAX_FLOAT = 1e30  # of a setting: its products with ordinary numbers are finite in float32
# The models that have a setting, where it is one of theirs.
RECGOAT = ("lgn_mm",)
FREEDOM = ("freedom",)
ITEM_GRAPHS = ("freedom", "lattice", "mgcn", "smore")
LIGHTGCN = ("lgn", *ITEM_GRAPHS, "bm3", *RECGOAT)


def setting(
    default: typing.Any,
    group: str,
    help: str,
    choices: tuple | None = None,
    low: float | None = None,
    high: float | None = None,
    alias: tuple[str, ...] = (),
    free: bool = False,
    models: tuple[str, ...] = (),
) -> typing.Any:
    """A field of Config: default, flag group, one-line help, allowed values or range [low, high], aliases.

    free: a resumed run may change it, because it has no part in the result. models: the built-in models that
    read it, for the help, if not all do.
    """
    rules = dict(
        group=group, help=help, choices=choices, low=low, high=high, alias=alias, free=free, models=models
    )
    return dataclasses.field(default=default, metadata=rules)


def switch(
    default: int, group: str, help: str, free: bool = False, models: tuple[str, ...] = ()
) -> typing.Any:
    """A setting that is 0 or 1."""
    return setting(default, group, help, choices=(0, 1), free=free, models=models)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of one run. Raises UserError for a value that is not allowed, or settings that contradict.

    A model class can add settings of its own: models.registry.config_class gives the Config that has them.
    """

    # ---- data
    dataset: str = setting(
        "", "data", "name of the dataset folder under --data_root; NAME_raw if there is no NAME"
    )
    data_root: str = setting("data", "data", "folder that contains the dataset folders", free=True)
    data_format: str = setting(
        "auto",
        "data",
        "format of the interactions: train/valid/test.txt, or one .inter table; auto prefers train.txt",
        choices=("auto", "txt", "inter"),
    )
    edge_weight: str = setting(
        "one",
        "data",
        "weight of a user-item edge before normalisation (eq. 4): 1, the rating, or auto: the rating if the "
        "data has ratings",
        choices=("one", "rating", "auto"),
    )
    use_multimodal: int = switch(
        1, "data", "0 ignores all features; ID models take only the number of items from them"
    )
    text_feat: str = setting(
        "",
        "data",
        "item text features, .npy [items, dim]; if no feature flag is given, text_feat.npy, image_feat.npy "
        "and audio_feat.npy of the dataset folder are used",
        free=True,
    )
    image_feat: str = setting("", "data", "item image features, .npy [items, dim]", free=True)
    audio_feat: str = setting("", "data", "item audio features, .npy [items, dim]", free=True)
    user_text_feat: str = setting(
        "",
        "data",
        "user text features, .npy [users, dim], or 'mean' for the mean text feature of the user's training "
        "items; enables the user-user branch (eq. 6)",
        free=True,
        models=RECGOAT,
    )
    item_text_graph: str = setting(
        "", "data", "item neighbours by text, .npz with nbr [items, k], instead of building them", free=True
    )
    item_image_graph: str = setting("", "data", "item neighbours by image, likewise", free=True)
    item_audio_graph: str = setting("", "data", "item neighbours by audio, likewise", free=True)
    user_text_graph: str = setting("", "data", "user neighbours by text, likewise", free=True, models=RECGOAT)
    missing: str = setting(
        "",
        "data",
        "share of the items that lack a modality, drawn by the seed, as text:0.3 or text:0.3,image:0.3",
    )
    missing_fill: str = setting(
        "zero",
        "data",
        "features of items that lack a modality: zeros, the mean of the other items, that of the items "
        "bought by the same users (neighbours), or zeros and the ID vector in place of the modality vector "
        "(id; lgn_mm)",
        choices=("zero", "mean", "neighbours", "id"),
    )
    item_knn_k: int = setting(20, "data", "neighbours of an item in each kNN graph (eq. 2)", low=1)
    user_knn_k: int = setting(
        20, "data", "neighbours of a user in the user-user graph (eq. 6)", low=1, models=RECGOAT
    )
    knn_graph: str = setting(
        "symmetric",
        "data",
        "edges of the attention graphs; symmetric: from and to the neighbours, and a self loop; directed: "
        "only from the neighbours (eq. 2)",
        choices=("symmetric", "directed"),
        models=RECGOAT,
    )
    force_build_item_knn: int = switch(0, "data", "1 rebuilds cached kNN graphs", free=True)
    cache_dir: str = setting(
        "", "data", "folder of cached kNN graphs (default <data_root>/.cache)", free=True
    )

    # ---- model
    model: str = setting("lgn", "model", "a built-in model, or a class of your own as FILE.py:CLASS")
    recdim: int = setting(64, "model", "embedding size d", low=1)
    layer: int = setting(3, "model", "LightGCN layers", low=0, models=LIGHTGCN)
    item_branch_layers: int = setting(
        2, "model", "graph attention layers of an item branch (eq. 3)", low=1, models=RECGOAT
    )
    user_branch_layers: int = setting(
        2, "model", "graph attention layers of the user branch (eq. 6)", low=1, models=RECGOAT
    )
    attn_heads: int = setting(8, "model", "attention heads; must divide recdim", low=1, models=RECGOAT)
    attn_dropout: float = setting(
        0.1, "model", "dropout of the attention weights", low=0.0, high=0.95, models=RECGOAT
    )
    attn_bias: int = switch(
        1, "model", "0 keeps the bias of attention layers at zero: eq. 3 has none", models=RECGOAT
    )
    attn_init: str = setting(
        "xavier",
        "model",
        "initialisation of attention layers: Glorot's uniform, or that of DGL's GATConv (released code)",
        choices=("xavier", "dgl"),
        models=RECGOAT,
    )
    feat_dropout: float = setting(
        0.0, "model", "dropout of the input of each attention layer", low=0.0, high=0.95, models=RECGOAT
    )
    branch_dropout: float = setting(
        0.0, "model", "dropout of the output of each attention layer", low=0.0, high=0.95, models=RECGOAT
    )
    feat_proj: int = switch(
        0,
        "model",
        "1 adds a linear map to recdim before the first attention layer (released code)",
        models=RECGOAT,
    )
    fusion: str = setting(
        "oat",
        "model",
        "how item modalities are fused; oat: optimal adaptive transport (eq. 9-14)",
        choices=("concat", "sum", "oat"),
        models=RECGOAT,
    )
    sum_proj: int = switch(
        0, "model", "1 adds a linear map after --fusion sum (released code)", models=RECGOAT
    )
    absent_modality: str = setting(
        "skip",
        "model",
        "text or images without features: left out, or replaced by the ID vectors, with their transport, "
        "fusion weight and modality pairs (released code)",
        choices=("skip", "id"),
        models=RECGOAT,
    )
    fuse_input: str = setting(
        "raw",
        "model",
        "l2 scales ID and modality vectors to length 1 before fusion",
        choices=("raw", "l2"),
        models=RECGOAT,
    )
    fuse_norm: str = setting(
        "layer_l2",
        "model",
        "normalisation after fusion: LayerNorm, L2, both or neither",
        choices=("layer_l2", "layer", "l2", "none"),
        models=RECGOAT,
    )
    fuse_drop: float = setting(
        0.1, "model", "dropout of the fused item vector", low=0.0, high=0.95, models=RECGOAT
    )
    alpha: float = setting(
        0.05,
        "model",
        "fusion weight of images (g_v of eq. 14)",
        low=0.0,
        high=1.0,
        alias=("image_weight",),
        models=RECGOAT,
    )
    beta: float = setting(
        0.8,
        "model",
        "fusion weight of text (g_t of eq. 14)",
        low=0.0,
        high=1.0,
        alias=("text_weight",),
        models=RECGOAT,
    )
    audio_weight: float = setting(0.05, "model", "fusion weight of audio", low=0.0, high=1.0, models=RECGOAT)
    learn_fusion_weights: int = switch(
        0, "model", "1 trains the fusion weights without constraint (released code)", models=RECGOAT
    )
    eta: float = setting(
        0.2,
        "model",
        "weight of the user text vector; the user ID vector has 1 - eta",
        low=0.0,
        high=1.0,
        models=RECGOAT,
    )
    item_graph_layers: int = setting(1, "model", "layers on the item graph", low=0, models=ITEM_GRAPHS)
    item_graph_image: float = setting(
        0.1,
        "model",
        "share of the image graph in the item graphs of freedom and of the neighbourhood term",
        low=0.0,
        high=1.0,
    )
    edge_dropout: float = setting(
        0.8,
        "model",
        "share of the user-item edges removed in an epoch, edges between popular nodes first",
        low=0.0,
        high=0.99,
        models=FREEDOM,
    )
    feature_bpr_weight: float = setting(
        1e-3, "model", "weight of BPR on the projected features", low=0.0, models=FREEDOM
    )

    neighbour_weight: float = setting(
        0.0,
        "model",
        "weight lambda of the item-neighbourhood term in the scores of any model; 0: none",
        low=0.0,
    )
    neighbour_content: float = setting(
        0.2, "model", "weight alpha of the content graphs in the neighbourhood term", low=0.0
    )
    neighbour_agreement: float = setting(
        0.5,
        "model",
        "weight gamma, in the neighbourhood term, of items both bought together and similar in content",
        low=0.0,
    )
    neighbour_smoothing: float = setting(
        1.0,
        "model",
        "weight sigma, in the neighbourhood term, of what was bought together with items of similar content",
        low=0.0,
    )
    neighbour_keep: int = setting(
        0, "model", "largest weights that the neighbourhood term keeps for each item; 0 keeps all", low=0
    )
    neighbour_power: float = setting(
        0.4,
        "model",
        "exponent b of the popularity of the user's items in the neighbourhood term",
        low=0.0,
        high=2.0,
    )
    neighbour_scale: str = setting(
        "raw",
        "model",
        "raw adds the neighbourhood term as it is; spread divides both parts by their deviation over items",
        choices=("raw", "spread"),
    )

    # ---- alignment
    contrastive_weight: float = setting(
        0.01, "alignment", "weight of the contrastive term", low=0.0, models=RECGOAT
    )
    temperature: float = setting(
        0.2, "alignment", "temperature tau of InfoNCE (eq. 7)", low=1e-3, models=RECGOAT
    )
    modality_consistency_weight: float = setting(
        1.0,
        "alignment",
        "share w of the modality pairs in the contrastive term; 1 - w is that of InfoNCE(user, positive "
        "item) (released code: 0.5)",
        low=0.0,
        high=1.0,
        models=RECGOAT,
    )
    contrastive_sign: str = setting(
        "attract",
        "alignment",
        "attract minimises InfoNCE of the modality pairs (eq. 8); repel minimises 1 - InfoNCE (released "
        "code)",
        choices=("attract", "repel"),
        models=RECGOAT,
    )
    contrastive_reduction: str = setting(
        "sum",
        "alignment",
        "reduction over the modality pairs: sum (eq. 8) or mean (released code)",
        choices=("sum", "mean"),
        models=RECGOAT,
    )
    contrastive_items: str = setting(
        "pos",
        "alignment",
        "items of the modality pairs: the batch's positives, or its positives and negatives (released code)",
        choices=("pos", "pos_neg"),
        models=RECGOAT,
    )
    contrastive_anchor: str = setting(
        "text",
        "alignment",
        "anchor of InfoNCE between text and images, whose candidates are the other: text (eq. 8) or image "
        "(released code)",
        choices=("text", "image"),
        models=RECGOAT,
    )
    contrastive_dedup: int = switch(
        1,
        "alignment",
        "1 counts an item that occurs repeatedly in a batch once; 0 makes it its own negative (released "
        "code)",
        models=RECGOAT,
    )
    transport: str = setting(
        "full",
        "alignment",
        "what transports a modality: plan + residual (eq. 12), one of them, or none",
        choices=("full", "plan", "residual", "none"),
        models=RECGOAT,
    )
    residual_init: str = setting(
        "xavier",
        "alignment",
        "initialisation of the residual of eq. 12",
        choices=("xavier", "zeros"),
        models=RECGOAT,
    )
    ot_cost: str = setting(
        "l1",
        "alignment",
        "cost between feature dimensions: mean absolute (eq. 10) or squared difference (released code)",
        choices=("l1", "squared"),
        models=RECGOAT,
    )
    ot_scale: float = setting(
        1.0,
        "alignment",
        "factor s of the cost (eq. 10), and so of W1; it changes the plan only with --ot_unit absolute",
        low=1e-6,
        models=RECGOAT,
    )
    ot_epsilon: float = setting(
        0.5,
        "alignment",
        "entropic regularisation of the plan (eq. 10), in units of --ot_unit",
        low=1e-6,
        models=RECGOAT,
    )
    ot_unit: str = setting(
        "spread",
        "alignment",
        "unit of --ot_epsilon: the standard deviation of the cost without its row and column means, the mean "
        "cost, or 1 (absolute)",
        choices=("spread", "mean", "absolute"),
        models=RECGOAT,
    )
    sinkhorn: str = setting(
        "log",
        "alignment",
        "log: stable at every scale; exp: plain Sinkhorn-Knopp, which underflows (released code)",
        choices=("log", "exp"),
        models=RECGOAT,
    )
    sinkhorn_iters: int = setting(
        100, "alignment", "maximum Sinkhorn iterations for a plan", low=1, models=RECGOAT
    )
    plan_scale: str = setting(
        "barycentric",
        "alignment",
        "transport by d T0, whose rows sum to 1, or by T0, whose rows sum to 1/d (mass; released code)",
        choices=("barycentric", "mass"),
        models=RECGOAT,
    )
    plan_every: int = setting(
        10,
        "alignment",
        "training steps between two transport plans; with another --plan_from than items, between those of "
        "the log",
        low=1,
        models=RECGOAT,
    )
    plan_from: str = setting(
        "items",
        "alignment",
        "vectors that a plan is computed from; items: all items without dropout, every --plan_every steps; "
        "batch: the items of the batch in every step, and all items in scoring (eq. 10); forward: all items "
        "with their dropout in every forward pass, scoring too (released code)",
        choices=("items", "batch", "forward"),
        models=RECGOAT,
    )
    w1_weight: float = setting(
        0.0,
        "alignment",
        "weight of the 1-Wasserstein term <T0, C>, over the items of the batch",
        low=0.0,
        models=RECGOAT,
    )

    # ---- training
    epochs: int = setting(1000, "training", "maximum epochs", low=1, free=True)
    bpr_batch: int = setting(2048, "training", "training triples in a step", low=1)
    lr: float = setting(1e-3, "training", "Adam learning rate", low=0.0)
    decay: float = setting(
        1e-4, "training", "weight of the mean squared norm of a batch's layer-0 embeddings", low=0.0
    )
    modality_decay: float = setting(
        0.0,
        "training",
        "the same for modality vectors of a batch's items, before fusion; not for ID vectors in their place",
        low=0.0,
        models=RECGOAT,
    )
    neg_reject: int = switch(
        1, "training", "0 allows training positives of a user as negatives (released code)"
    )
    precision: str = setting(
        "fp32",
        "training",
        "operands of large matrix products: fp32; tf32 (GPU) in training; bf16 (fast on processors that have "
        "it) of feature maps and InfoNCE in lgn_mm, of InfoNCE in mgcn and smore, without effect in the "
        "others; weights, sums and rankings stay fp32",
        choices=("fp32", "tf32", "bf16"),
    )
    recipe: str = setting(
        "default",
        "training",
        "paper: the literal paper; released: what the authors' code does (explicit flags win; "
        "beside --preset or --config, the method is the recipe's)",
        choices=("default", "paper", "released"),
    )

    # ---- evaluation
    topks: tuple = setting((10, 20), "evaluation", "cut-offs K of the metrics, as 20 or 10,20 or [10,20]")
    eval_every: int = setting(
        5, "evaluation", "epochs between two evaluations on the validation split", low=1
    )
    patience: int = setting(
        10, "evaluation", "evaluations without a better --valid_metric before training stops; 0: never", low=0
    )
    valid_metric: str = setting(
        "", "evaluation", "metric that selects the best epoch, as ndcg@20 (default: ndcg at the first K)"
    )
    select_on: str = setting(
        "valid",
        "evaluation",
        "split that selects the best epoch; test LEAKS and exists to measure what the released code does",
        choices=("valid", "test"),
    )
    mask_valid_at_test: int = switch(
        0, "evaluation", "1 removes validation items from the candidates at test"
    )
    cold_vectors: int = switch(
        1,
        "evaluation",
        "1 ranks items that are held out entirely by vectors made of their features, in data with at least "
        "5 % of such items and where the model has such vectors; 0 by the model's own",
    )
    eval_dropout: int = switch(0, "evaluation", "1 keeps dropout on while scoring (released code)")
    eval_dropout_users: int = setting(
        0,
        "evaluation",
        "with --eval_dropout 1, users that are scored with the same dropout masks, before the model runs "
        "again with others (released code: 100); 0: all users",
        low=0,
    )
    eval_chunk: int = setting(
        0,
        "evaluation",
        "users scored at a time; 0: chosen for the device",
        low=0,
        alias=("test_u_batch_size",),
        free=True,
    )

    # ---- run
    seed: int = setting(2025, "run", "seed of all random numbers", low=0, high=2**32 - 1)
    cuda: int = switch(1, "run", "1 uses a GPU if there is one, 0 never", free=True)
    gpu_id: int = setting(0, "run", "index of the GPU", low=0, free=True)
    threads: int = setting(
        0, "run", "CPU threads; 0: torch's default; another number changes the last digits", low=0, free=True
    )
    cuda_graph: str = setting(
        "0",
        "run",
        "replay training steps from a CUDA graph, with other dropout masks; auto: where it is possible; no "
        "GPU has run this yet",
        choices=("auto", "0", "1"),
    )
    path: str = setting("runs", "run", "folder in which the run folder is created", free=True)
    name: str = setting("", "run", "name of this run in tables (default: its model)", free=True)
    resume: str = setting(
        "",
        "run",
        "run folder to continue, with its settings; --epochs may grow, and where and how it runs may differ "
        "(--data_root, --threads, --save_every, ...)",
        free=True,
    )
    save_every: int = setting(1, "run", "epochs between two writes of last.pt", low=1, free=True)
    max_minutes: float = setting(
        0.0, "run", "minutes after which to save and stop, to be resumed; 0: no limit", low=0.0, free=True
    )
    evaluate_only: int = switch(
        0, "run", "1 scores --checkpoint on validation and test, without training", free=True
    )
    checkpoint: str = setting(
        "", "run", "checkpoint to score, as RUN_FOLDER/best.pt; its settings are used", free=True
    )
    tensorboard: int = switch(1, "run", "0 writes no TensorBoard events", free=True)
    projector: int = switch(
        0,
        "run",
        "1 saves item vectors (and up to 10,000 user vectors) for TensorBoard's projector",
        free=True,
    )
    plan_image_every: int = setting(
        50,
        "run",
        "epochs between two TensorBoard images of the transport plans; 0: none",
        low=0,
        free=True,
        models=RECGOAT,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))
        if bool(self.evaluate_only) != bool(self.checkpoint):
            raise UserError("--evaluate_only 1 and --checkpoint PATH go together: give both or neither")
        if self.evaluate_only and self.resume:
            raise UserError("--evaluate_only 1 scores a checkpoint and --resume trains on: drop one of them")
        if self.projector and not self.tensorboard:
            raise UserError("--projector 1 needs TensorBoard events: drop --tensorboard 0")
        parse_missing(self.missing)
        is_known = not self.valid_metric or self.valid_metric in metric_names(self.topks)
        if not (
            is_known or self.evaluate_only
        ):  # a checkpoint may be scored at other K than it was selected at
            raise UserError(
                f"--valid_metric {self.valid_metric}: not one of {', '.join(metric_names(self.topks))}; "
                "add its K to --topks or name another"
            )

    @property
    def missing_shares(self) -> dict[str, float]:
        """The setting `missing` as {modality: share of the items}."""
        return parse_missing(self.missing)

    @property
    def selection_metric(self) -> str:
        """The metric that selects the best epoch."""
        return self.valid_metric or f"ndcg@{self.topks[0]}"

    def non_defaults(self) -> list[str]:
        """Names of the model, alignment and training settings that differ from their defaults."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if field.metadata["group"] in ("model", "alignment", "training")
            and not field.metadata["free"]
            and getattr(self, field.name) != field.default
        ]

    def as_dict(self) -> dict[str, typing.Any]:
        """Settings as plain JSON values."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


# The settings in which the literal paper and the released code differ from the defaults; docs/released.md has
# a line on each.
RECIPES: dict[str, dict[str, typing.Any]] = {
    "default": {},
    "paper": dict(
        knn_graph="directed",
        edge_weight="auto",
        attn_bias=0,
        attn_dropout=0.0,
        item_branch_layers=1,
        user_branch_layers=1,
        plan_from="batch",
        plan_scale="mass",
        w1_weight=0.01,
        fuse_norm="none",
        fuse_drop=0.0,
        decay=0.0,
        cold_vectors=0,
    ),
    "released": dict(
        attn_init="dgl",
        absent_modality="id",
        feat_proj=1,
        sum_proj=1,
        learn_fusion_weights=1,
        contrastive_sign="repel",
        modality_consistency_weight=0.5,
        contrastive_reduction="mean",
        contrastive_items="pos_neg",
        contrastive_anchor="image",
        contrastive_dedup=0,
        ot_cost="squared",
        ot_scale=100.0,
        ot_epsilon=0.01,
        ot_unit="absolute",
        sinkhorn="exp",
        plan_scale="mass",
        plan_from="forward",
        neg_reject=0,
        topks=(10,),
        eval_every=20,
        patience=0,
        select_on="test",
        eval_dropout=1,
        eval_dropout_users=100,
        cold_vectors=0,
    ),
}
# In the released code --fuse_drop is the dropout of the attention layers too.
FOLLOW_FUSE_DROP = ("attn_dropout", "feat_dropout", "branch_dropout")
# The settings that --recipe decides beside --preset or --config, which keep their sizes and tuned weights.
OF_RECIPES = {
    *RECIPES["paper"],
    *RECIPES["released"],
    *FOLLOW_FUSE_DROP,
    *("attn_heads", "temperature", "residual_init", "transport", "fuse_input"),
    *("modality_decay", "neighbour_weight", "valid_metric"),
} - {"item_branch_layers", "user_branch_layers", "topks", "eval_every", "patience"}


def recipe_settings(recipe: str, given: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """The settings of a recipe; given: the settings that are given explicitly, which some of them follow."""
    values = dict(RECIPES.get(recipe, {}))
    if recipe == "released":
        values |= dict.fromkeys(FOLLOW_FUSE_DROP, given.get("fuse_drop", Config.fuse_drop))
    return values


def parse_missing(text: str) -> dict[str, float]:
    """ "text:0.3,image:0.5" -> {"text": 0.3, "image": 0.5}. Raises UserError for anything else."""
    shares: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition(":")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if name not in MODALITIES or name in shares or not 0 <= share < 1:
            raise UserError(
                f"--missing {text[:60]}: give MODALITY:SHARE of {', '.join(MODALITIES)}, each once, with "
                "shares from 0 to below 1, as text:0.3,image:0.3"
            )
        shares[name] = share
    return shares


def metric_names(ks: tuple[int, ...]) -> list[str]:
    """Names of all metrics that an evaluation at these cut-offs gives."""
    return [f"{name}@{k}" for k in ks for name in ("recall", "ndcg", "precision", "map", "hitrate")]


def check_value(field: dataclasses.Field, value: typing.Any) -> None:
    """Raise UserError unless a value is allowed for a field of Config."""
    rules, kind = field.metadata, type(field.default)
    allowed: typing.Any = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise UserError(f"--{field.name} {str(value)[:40]}: must be of type {kind.__name__}")
    if rules["choices"] and value not in rules["choices"]:
        raise UserError(f"--{field.name} {value}: choose from {', '.join(map(str, rules['choices']))}")
    if rules["low"] is not None and not value >= rules["low"]:  # "not >=" also catches NaN
        raise UserError(f"--{field.name} {value}: must be at least {rules['low']}")
    if rules["high"] is not None and not value <= rules["high"]:
        raise UserError(f"--{field.name} {value}: must be at most {rules['high']}")
    if kind is float and not abs(value) <= MAX_FLOAT:
        raise UserError(f"--{field.name} {value}: must be finite and at most {MAX_FLOAT:g}")
    if field.name == "topks" and not (value and all(type(k) is int and k >= 1 for k in value)):
        raise UserError(f"--topks {list(value)}: give one or more whole numbers of at least 1, as 10,20")


# ---------------------------------------------------------------- device and seeds


@functools.cache
def bf16_slowdown(size: int = 256, repeats: int = 5) -> float:
    """Time of a product of bf16 matrices [size, size] on a CPU core relative to fp32, the best of a few."""
    import torch

    seconds = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other where other processes use the cores
    for dtype in (torch.float32, torch.bfloat16):
        timer = timeit.Timer("matrix @ matrix", globals={"matrix": torch.ones(size, size, dtype=dtype)})
        seconds[dtype] = min(timer.repeat(repeats, number=1))
    torch.set_num_threads(threads)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def usable_precision(config: Config, device: torch.device) -> tuple[Config, list[str]]:
    """The config, with fp32 in place of bf16 on a processor that has no instructions for it, and a note.

    A run that is resumed or scored keeps its precision, which its numbers depend on. Raises UserError for
    training in tf32 without a GPU.
    """
    on_cpu, is_new = device.type == "cpu", not (config.resume or config.evaluate_only)
    if config.precision == "tf32" and on_cpu and not config.evaluate_only:
        raise UserError("--precision tf32 needs an NVIDIA GPU, and this run is on the CPU: take fp32 or bf16")
    if config.precision != "bf16" or not on_cpu or not is_new or (slowdown := bf16_slowdown()) < 3:
        return config, []
    note = f"note: --precision bf16 is {slowdown:.0f} times slower than fp32 on this processor; using fp32"
    return dataclasses.replace(config, precision="fp32"), [note]


def choose_device(config: Config) -> torch.device:
    """The device of a run: the chosen GPU with --cuda 1 where CUDA works, else the CPU."""
    import torch

    if not (config.cuda and torch.cuda.is_available()):
        return torch.device("cpu")
    if config.gpu_id >= torch.cuda.device_count():
        raise UserError(
            f"--gpu_id {config.gpu_id}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}; name one "
            "of them"
        )
    return torch.device("cuda", config.gpu_id)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
