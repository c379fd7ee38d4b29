"""Every setting of a run, once, with its default, its help and its allowed values; device, seeds, run folder.

The command line (parse.py) is made from the fields of `Config`. Defaults follow the paper (arXiv 2602.00682);
`RECIPES["released"]` holds the settings in which the authors' released code departs from it.
"""

import contextlib
import ctypes
import dataclasses
import json
import platform
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from utils import UserError, atomic_write

GROUPS = ("data", "model", "alignment", "training", "evaluation", "run")
MODALITIES = ("text", "image", "audio")
CONTENT_MODELS = ("vbpr", "freedom", "lgn_mm")  # those that learn from item features


def setting(default, group, help, choices=None, low=None, high=None, alias=(), free=False):
    """A field of Config: its default, flag group, one-line help, allowed values or [low, high], other flag names.

    free: a resumed run may change it, because it has no part in what is computed (files are compared by content).
    """
    return dataclasses.field(
        default=default,
        metadata={
            "group": group,
            "help": help,
            "choices": choices,
            "low": low,
            "high": high,
            "alias": alias,
            "free": free,
        },
    )


def switch(default, group, help, free=False):
    """A setting that is 0 or 1."""
    return setting(default, group, help, choices=(0, 1), free=free)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of one run. Raises UserError when a value is not allowed or two settings contradict."""

    # data
    dataset: str = setting("baby", "data", "name of the dataset folder under --data_root")
    data_root: str = setting("data", "data", "folder that holds the dataset folders", free=True)
    data_format: str = setting(
        "auto",
        "data",
        "interaction files: train/valid/test.txt, or one .inter table; auto takes "
        "train.txt where it is there",
        choices=("auto", "txt", "inter"),
    )
    edge_weight: str = setting(
        "one", "data", "user-item edge coefficient before normalisation (eq. 4)", choices=("one", "rating")
    )
    use_multimodal: int = switch(
        1, "data", "0 ignores all features; mf and lgn take only the number of items from them"
    )
    text_feat: str = setting(
        "",
        "data",
        "item text features, .npy [items, dim]; without any feature flag a run takes "
        "text_feat.npy, image_feat.npy and audio_feat.npy of the dataset folder",
        free=True,
    )
    image_feat: str = setting("", "data", "item image features, .npy [items, dim]", free=True)
    audio_feat: str = setting("", "data", "item audio features, .npy [items, dim]", free=True)
    user_text_feat: str = setting(
        "",
        "data",
        "user text features, .npy [users, dim], or 'mean': the mean text feature of "
        "the user's training items; switches the user-user branch on (eq. 6)",
        free=True,
    )
    item_text_graph: str = setting(
        "",
        "data",
        ".npz of item neighbours by text (nbr [items, k]) to use instead of building it",
        free=True,
    )
    item_image_graph: str = setting("", "data", "the same by image", free=True)
    item_audio_graph: str = setting("", "data", "the same by audio", free=True)
    user_text_graph: str = setting("", "data", "the same for users", free=True)
    item_knn_k: int = setting(20, "data", "neighbours an item has in each kNN graph (eq. 2)", low=1)
    user_knn_k: int = setting(20, "data", "neighbours a user has in the user-user graph (eq. 6)", low=1)
    force_build_item_knn: int = switch(
        0, "data", "1 rebuilds kNN graphs even where the cache has them", free=True
    )
    cache_dir: str = setting("", "data", "folder of cached kNN graphs; default <data_root>/.cache", free=True)

    # model
    model: str = setting(
        "lgn",
        "model",
        "mf: matrix factorisation; lgn: LightGCN; vbpr: VBPR; freedom: FREEDOM; lgn_mm: RecGOAT",
        choices=("mf", "lgn", "vbpr", "freedom", "lgn_mm"),
    )
    recdim: int = setting(64, "model", "embedding size d", low=1)
    layer: int = setting(3, "model", "LightGCN layers", low=0)
    item_branch_layers: int = setting(2, "model", "graph-attention layers of an item branch (eq. 3)", low=1)
    user_branch_layers: int = setting(2, "model", "graph-attention layers of the user branch (eq. 6)", low=1)
    attn_heads: int = setting(8, "model", "attention heads; must divide recdim", low=1)
    attn_dropout: float = setting(0.1, "model", "dropout of the attention weights", low=0.0, high=0.95)
    feat_dropout: float = setting(
        0.0, "model", "dropout of the input of each attention layer", low=0.0, high=0.95
    )
    branch_dropout: float = setting(
        0.0, "model", "dropout of the output of each attention layer", low=0.0, high=0.95
    )
    feat_proj: int = switch(
        0, "model", "1 puts a linear map to recdim before the first attention layer (released code)"
    )
    fusion: str = setting(
        "oat",
        "model",
        "how item modalities become one vector; oat: optimal adaptive transport (eq. 9-14)",
        choices=("concat", "sum", "oat"),
    )
    sum_proj: int = switch(0, "model", "1 puts a linear map after --fusion sum (released code)")
    fuse_input: str = setting(
        "raw",
        "model",
        "l2 brings the ID and modality vectors to length 1 before they are fused",
        choices=("raw", "l2"),
    )
    fuse_norm: str = setting(
        "layer_l2",
        "model",
        "what follows fusion: LayerNorm, L2 normalisation, both or neither",
        choices=("layer_l2", "layer", "l2", "none"),
    )
    fuse_drop: float = setting(0.1, "model", "dropout of the fused item vector", low=0.0, high=0.95)
    alpha: float = setting(
        0.05, "model", "fusion weight of the image modality (g_v of eq. 14)", low=0.0, high=1.0
    )
    beta: float = setting(
        0.8, "model", "fusion weight of the text modality (g_t of eq. 14)", low=0.0, high=1.0
    )
    audio_weight: float = setting(0.05, "model", "fusion weight of the audio modality", low=0.0, high=1.0)
    learn_fusion_weights: int = switch(
        0, "model", "1 trains the fusion weights, unconstrained (released code)"
    )
    eta: float = setting(
        0.2, "model", "weight of the user text vector; the user ID vector has 1 - eta", low=0.0, high=1.0
    )
    item_graph_layers: int = setting(1, "model", "freedom: layers on the item-kNN graph", low=0)
    item_graph_image: float = setting(
        0.1,
        "model",
        "freedom: share of the image graph in the item graph; other modalities share the rest",
        low=0.0,
        high=1.0,
    )
    edge_dropout: float = setting(
        0.8,
        "model",
        "freedom: share of the user-item edges that an epoch goes without, popular ones first",
        low=0.0,
        high=0.99,
    )
    feature_bpr_weight: float = setting(
        1e-3, "model", "freedom: weight of BPR on the projected features", low=0.0
    )

    # alignment
    contrastive_weight: float = setting(0.01, "alignment", "weight of the contrastive term", low=0.0)
    temperature: float = setting(0.2, "alignment", "temperature tau of InfoNCE (eq. 7)", low=1e-3)
    modality_consistency_weight: float = setting(
        1.0,
        "alignment",
        "share w of the contrastive term that goes to the modality "
        "pairs; 1 - w goes to InfoNCE(user, positive item) (released code: 0.5)",
        low=0.0,
        high=1.0,
    )
    contrastive_sign: str = setting(
        "attract",
        "alignment",
        "attract minimises InfoNCE of the modality pairs (eq. 8); repel "
        "minimises 1 - InfoNCE (released code)",
        choices=("attract", "repel"),
    )
    contrastive_reduction: str = setting(
        "sum",
        "alignment",
        "over the modality pairs: sum (eq. 8) or mean (released code)",
        choices=("sum", "mean"),
    )
    contrastive_items: str = setting(
        "pos",
        "alignment",
        "items of the modality pairs: the batch's positives, or a second "
        "set of pairs over its negatives too (released code)",
        choices=("pos", "pos_neg"),
    )
    contrastive_dedup: int = switch(
        1,
        "alignment",
        "1 lets an item that a batch repeats count once; 0 makes it its own negative (released code)",
    )
    transport: str = setting(
        "full",
        "alignment",
        "what moves a modality: plan + residual (eq. 12), one of them, or none",
        choices=("full", "plan", "residual", "none"),
    )
    residual_init: str = setting(
        "xavier", "alignment", "start of the learnable residual of eq. 12", choices=("xavier", "zeros")
    )
    ot_cost: str = setting(
        "l1",
        "alignment",
        "cost between feature dimensions: mean absolute (eq. 9) or squared (released code) difference",
        choices=("l1", "squared"),
    )
    ot_scale: float = setting(
        1.0, "alignment", "factor s of the cost (eq. 9); matters only with --ot_unit absolute", low=1e-6
    )
    ot_epsilon: float = setting(
        0.5, "alignment", "entropic regularisation of the plan (eq. 10), in units of --ot_unit", low=1e-6
    )
    ot_unit: str = setting(
        "spread",
        "alignment",
        "unit of --ot_epsilon: the spread of the cost that is left without its row and "
        "column means (all that a plan depends on), the mean cost, or 1",
        choices=("spread", "mean", "absolute"),
    )
    sinkhorn: str = setting(
        "log",
        "alignment",
        "log: stable at every scale; exp: plain Sinkhorn-Knopp, which underflows (released code)",
        choices=("log", "exp"),
    )
    sinkhorn_iters: int = setting(100, "alignment", "most Sinkhorn iterations a refresh of the plan", low=1)
    plan_scale: str = setting(
        "barycentric",
        "alignment",
        "Z is moved by d T0, whose rows sum to 1, or by T0, whose rows sum to 1/d (released code)",
        choices=("barycentric", "mass"),
    )
    plan_every: int = setting(10, "alignment", "training steps between two refreshes of the plan", low=1)
    w1_weight: float = setting(
        0.0, "alignment", "weight of the 1-Wasserstein term <T0, C> in the loss", low=0.0
    )

    # training
    epochs: int = setting(1000, "training", "most epochs", low=1, free=True)
    bpr_batch: int = setting(2048, "training", "training triples a step", low=1)
    lr: float = setting(1e-3, "training", "Adam learning rate", low=0.0)
    decay: float = setting(
        1e-4, "training", "weight of the mean squared norm of the layer-0 embeddings of a batch", low=0.0
    )
    modality_decay: float = setting(
        0.0, "training", "the same for the modality vectors of a batch's items, before fusion", low=0.0
    )
    neg_reject: int = switch(
        1, "training", "1 never draws a training positive of the user as a negative; 0 may (released code)"
    )
    precision: str = setting(
        "fp32",
        "training",
        "operands of the large matrix products of training: fp32, tf32 (GPU), or bf16 "
        "(fast where the processor has it); weights, their sums and the ranking stay fp32",
        choices=("fp32", "tf32", "bf16"),
    )
    recipe: str = setting(
        "paper",
        "training",
        "paper: defaults; released: every departure of the authors' code at once (explicit flags still win)",
        choices=("paper", "released"),
    )

    # evaluation
    topks: tuple = setting((10, 20), "evaluation", "cut-offs K of the metrics: 20, 10,20 or [10,20]")
    eval_every: int = setting(
        5, "evaluation", "epochs between two evaluations on the validation split", low=1
    )
    patience: int = setting(
        10, "evaluation", "evaluations without a better --valid_metric before training stops; 0: never", low=0
    )
    valid_metric: str = setting(
        "", "evaluation", "metric that selects the best epoch, as ndcg@20; default ndcg at the first K"
    )
    select_on: str = setting(
        "valid",
        "evaluation",
        "split that selects the best epoch; test LEAKS and is there to measure what the released code does",
        choices=("valid", "test"),
    )
    mask_valid_at_test: int = switch(
        0, "evaluation", "1 takes validation items out of the candidates while testing"
    )
    eval_dropout: int = switch(0, "evaluation", "1 leaves dropout on while scoring (released code)")
    eval_chunk: int = setting(
        0,
        "evaluation",
        "users scored at a time; 0: as many as suit the device",
        low=0,
        alias=("test_u_batch_size",),
        free=True,
    )

    # run
    seed: int = setting(2025, "run", "seed of everything random", low=0, high=2**32 - 1)
    cuda: int = switch(1, "run", "1 uses a GPU where there is one; 0 never", free=True)
    gpu_id: int = setting(0, "run", "which GPU", low=0, free=True)
    threads: int = setting(0, "run", "CPU threads; 0: as torch chooses", low=0, free=True)
    path: str = setting("runs", "run", "folder in which the run folder is made", free=True)
    name: str = setting("", "run", "what tables call this run; default: the name of its model", free=True)
    resume: str = setting(
        "",
        "run",
        "run folder to continue, with its settings; of these only --epochs may grow, and what has no part "
        "in the result may change",
        free=True,
    )
    save_every: int = setting(1, "run", "epochs between two writes of last.pt", low=1, free=True)
    max_minutes: float = setting(
        0.0, "run", "stop and save after so many minutes, to be resumed; 0: no limit", low=0.0, free=True
    )
    evaluate_only: int = switch(
        0, "run", "1 trains nothing and scores --checkpoint on the validation and the test split", free=True
    )
    checkpoint: str = setting(
        "", "run", "checkpoint to score, as RUN_FOLDER/best.pt; its settings are used", free=True
    )
    tensorboard: int = switch(1, "run", "0 writes no TensorBoard events", free=True)
    projector: int = switch(
        0,
        "run",
        "1 leaves the item vectors (the users' too, up to 10,000) with ids and titles for TensorBoard's "
        "projector",
        free=True,
    )
    plan_image_every: int = setting(
        50, "run", "epochs between two TensorBoard images of the transport plan; 0: none", low=0, free=True
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))
        if self.model in CONTENT_MODELS and not self.use_multimodal:
            raise UserError(
                f"--model {self.model} needs features: drop --use_multimodal 0 or take --model lgn"
            )
        if self.model == "lgn_mm" and self.recdim % self.attn_heads:
            raise UserError(
                f"--recdim {self.recdim} is not divisible by --attn_heads {self.attn_heads}: change either"
            )
        if bool(self.evaluate_only) != bool(self.checkpoint):
            raise UserError("--evaluate_only 1 and --checkpoint PATH go together: give both or neither")
        if self.projector and not self.tensorboard:
            raise UserError("--projector 1 shows in TensorBoard beside a run's events: drop --tensorboard 0")
        if self.valid_metric and self.valid_metric not in metric_names(self.topks):
            raise UserError(
                f"--valid_metric {self.valid_metric}: not one of {', '.join(metric_names(self.topks))}; "
                "add its K to --topks or name another"
            )

    @property
    def selection_metric(self):
        """The metric that picks the best epoch."""
        return self.valid_metric or f"ndcg@{self.topks[0]}"

    def fusion_weights(self):
        """{modality: weight of eq. 14}; the ID vector has one minus the sum over the modalities in use."""
        return {"text": self.beta, "image": self.alpha, "audio": self.audio_weight}

    def chosen(self):
        """Names of the settings of model, alignment and training that are not at their defaults."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if field.metadata["group"] in ("model", "alignment", "training")
            and not field.metadata["free"]
            and getattr(self, field.name) != field.default
        ]

    def as_dict(self):
        """Settings as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


# Where the authors' code departs from the paper, setting by setting (shown in the README with what each one does).
RECIPES = {
    "paper": {},
    "released": dict(
        feat_dropout=0.1,
        branch_dropout=0.1,
        feat_proj=1,
        sum_proj=1,
        learn_fusion_weights=1,
        contrastive_sign="repel",
        modality_consistency_weight=0.5,
        contrastive_reduction="mean",
        contrastive_items="pos_neg",
        contrastive_dedup=0,
        ot_cost="squared",
        ot_scale=100.0,
        ot_epsilon=0.01,
        ot_unit="absolute",
        sinkhorn="exp",
        plan_scale="mass",
        plan_every=1,
        neg_reject=0,
        select_on="test",
        eval_dropout=1,
    ),
}


def metric_names(ks):
    """All metrics that an evaluation at these cut-offs yields."""
    return [f"{name}@{k}" for k in ks for name in ("recall", "ndcg", "precision", "map", "hitrate")]


def check_value(field, value):
    """Raise UserError unless value is allowed for this field of Config."""
    rules = field.metadata
    kinds = (int, float) if field.type is float else field.type
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise UserError(f"--{field.name} {str(value)[:40]}: must be of type {field.type.__name__}")
    if rules["choices"] and value not in rules["choices"]:
        raise UserError(f"--{field.name} {value}: choose from {', '.join(map(str, rules['choices']))}")
    if rules["low"] is not None and not value >= rules["low"]:  # "not >=" also catches NaN
        raise UserError(f"--{field.name} {value}: must be at least {rules['low']}")
    if rules["high"] is not None and not value <= rules["high"]:
        raise UserError(f"--{field.name} {value}: must be at most {rules['high']}")
    if field.type is float and not np.isfinite(value):
        raise UserError(f"--{field.name} {value}: must be a finite number")
    if field.name == "topks" and not (value and all(type(k) is int and k >= 1 for k in value)):
        raise UserError(f"--topks {list(value)}: give one or more whole numbers of at least 1, as 10,20")


def read_settings(path):
    """The settings in a run folder's config.json, as a dict for Config. Raises UserError if it does not hold them."""
    try:
        with open(path, "rb") as file:
            text = file.read(10**6 + 1)
        if len(text) > 10**6:
            raise ValueError("over 1 MB")
        stored = json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); --resume takes a run folder") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({str(error)[:60]}); --resume takes a run folder") from None
    return settings_of(stored, path)


def settings_of(stored, source):
    """The settings among the entries of a stored config; `source` names it in errors. Unknown settings are refused."""
    if not isinstance(stored, dict):
        raise UserError(f"{source}: holds no settings")
    names = {field.name for field in dataclasses.fields(Config)}
    unknown = sorted(map(str, stored.keys() - names - {"provenance"}))
    if unknown:
        raise UserError(
            f"{source}: has unknown settings ({', '.join(unknown)[:60]}); it comes from another version"
        )
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in stored.items()
        if key in names
    }


def changed_settings(stored, given):
    """['--lr 0.001 -> 0.01', ...]: what `given` changes among the stored settings that a resumed run must keep."""
    changes = []
    for field in dataclasses.fields(Config):
        before = stored.get(field.name, field.default)
        if field.name in given and not field.metadata["free"] and given[field.name] != before:
            changes.append(f"--{field.name} {before} -> {given[field.name]}")
    return changes


def choose_device(config):
    """The torch device of a run: the chosen GPU where --cuda 1 and CUDA works, else the CPU."""
    if not (config.cuda and torch.cuda.is_available()):
        if config.precision == "tf32":
            raise UserError(
                "--precision tf32: is of NVIDIA GPUs, and this run is on the CPU; take fp32 or bf16"
            )
        return torch.device("cpu")
    if config.gpu_id >= torch.cuda.device_count():
        raise UserError(
            f"--gpu_id {config.gpu_id}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}; name one of them"
        )
    return torch.device("cuda", config.gpu_id)


def seed_everything(seed):
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_run_folder(config):
    """Make <path>/<dataset>_<model>_<time>_<seed>/ with config.json in it; a name already taken gets a counter."""
    name = f"{Path(config.dataset).name}_{config.model}_{time.strftime('%Y%m%d-%H%M%S')}_{config.seed}"
    for attempt in range(1000):
        folder = Path(config.path) / (f"{name}-{attempt}" if attempt else name)
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"{folder}: cannot make the run folder ({error.strerror}); choose another with --path"
            ) from None
    else:
        raise UserError(f"{config.path}: no free run folder name; choose another with --path")
    try:
        write_config(folder, config)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder with --path"
        ) from None
    return folder


def write_config(folder, config):
    """Write config.json: every resolved setting, and what the run was made with."""
    write_json(folder / "config.json", {**config.as_dict(), "provenance": provenance()})


def write_json(path, value):
    """Write value as JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def provenance():
    """Versions of the interpreter and libraries, platform, and the git commit of the code (None outside a checkout)."""
    here = Path(__file__).parent

    def git(*words):
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(changed),
    }


def keep_freed_memory():
    """Let the C library keep memory that torch frees for torch's next tensors, instead of returning it to the system.

    Otherwise every large intermediate of a training step costs a page fault for each of its pages, which takes longer
    than most operations on it. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


def peak_memory_mb(device):
    """Peak memory of this process in MB (10^6 bytes): resident memory, or allocated GPU memory on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
