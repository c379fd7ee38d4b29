"""Frozen large models that turn texts or pictures into vectors, each behind one function.

    encoder = text_encoder("Qwen/Qwen3-Embedding-8B", revision=None, device="cuda", ...)
    encoder.encode(["a text", "another"])        # [2, encoder.dim] float32

Weights are read from safetensors files only, and no code of a model's author runs unless --trust_remote_code 1 says so.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from utils import UserError

PACKAGES = {"sentence_transformers": "sentence-transformers", "transformers": "transformers", "PIL": "pillow"}
POOLING = {"last": "lasttoken", "mean": "mean", "cls": "cls"}
MODEL_FILES = {".json", ".safetensors", ".txt", ".model", ".jinja", ".py"}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model ready to use."""

    dim: int
    encode: Callable  # list of inputs -> [n, dim] float32, the same for the same list
    about: dict  # what identifies its vectors: model, revision, settings, versions


def require(module):
    """Import an optional package. Raises UserError naming the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PACKAGES.get(module.split(".")[0], module)
        raise UserError(
            f"this needs {package} ({error}); install it with: pip install -c constraints.txt -e '.[features]'"
        ) from None


@contextlib.contextmanager
def loading(name):
    """Turn whatever a library raises while it loads a model into one UserError, and keep its chatter away."""
    if name.startswith(("/", "./", "../")) and not Path(name).is_dir():
        raise UserError(f"--model {name}: no such folder")
    require("transformers").logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ... by what is wrong
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"--model {name}: cannot be loaded ({reason}); name a model of the Hugging Face hub or a folder with "
            "config.json, tokenizer or image processor, and safetensors weights"
        ) from None


def choose(device, dtype):
    """(torch device, torch dtype) of --device and --dtype; auto: a GPU where there is one, bfloat16 there, else float32."""
    try:
        device = (
            torch.device("cuda" if torch.cuda.is_available() else "cpu")
            if device == "auto"
            else torch.device(device)
        )
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device}: cannot be used ({str(error).splitlines()[0][:80]}); take cpu or cuda"
        ) from None
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    return device, getattr(torch, dtype)


def model_revision(name, config):
    """What pins the weights: the commit of a hub model, or a hash over the files of a local folder."""
    folder = Path(name)
    if not folder.is_dir():
        return getattr(config, "_commit_hash", None)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in MODEL_FILES and path.is_file():
            with open(path, "rb") as file:
                digest.update(
                    f"{path.relative_to(folder).as_posix()}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode()
                )
    return f"sha256:{digest.hexdigest()}"


def versions(*modules):
    """{package: version} of torch and these modules."""
    return {"torch": torch.__version__, **{name: require(name).__version__ for name in modules}}


def unit_rows(x):
    """Rows of x [n, dim] scaled to length 1; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)


# ---------------------------------------------------------------- text


def text_encoder(
    name,
    *,
    revision,
    device,
    dtype,
    pooling,
    instruction,
    dimension,
    max_length,
    normalize,
    trust_remote_code,
):
    """A sentence-transformers model, or any Hugging Face model with the pooling of a sentence encoder.

    pooling: auto (what the model's folder says; else the last token of a causal language model, the mean of others), last,
    mean or cls. instruction: put before every text as it stands. dimension: keep so many leading dimensions (models trained
    by Matryoshka representation learning; 0: all). max_length: tokens, cut beyond (0: the model's own limit).
    Raises UserError for a model that cannot be loaded, or a dimension beyond the model's.
    """
    library = require("sentence_transformers")
    device, kind = choose(device, dtype)
    with loading(name):
        model = library.SentenceTransformer(
            name,
            device=str(device),
            revision=revision,
            trust_remote_code=bool(trust_remote_code),
            model_kwargs={"dtype": kind, "use_safetensors": True},
        )
        if pooling != "auto":
            model = with_pooling(library, model, POOLING[pooling])
        model.eval()
        if max_length:
            model.max_seq_length = min(max_length, model.max_seq_length or max_length)
        own = model.get_embedding_dimension()
    if dimension > own:
        raise UserError(f"--dimension {dimension}: the model has {own} dimensions; give fewer, or 0 for all")
    dim = dimension or own

    def encode(texts):
        rows = model.encode(
            texts, prompt=instruction, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True
        )
        rows = rows[:, :dim].float().cpu().numpy()
        return unit_rows(rows) if normalize else rows

    found = [module.pooling_mode for module in model if hasattr(module, "pooling_mode")]
    about = {
        "model": name,
        "revision": model_revision(name, model[0].auto_model.config),
        "pooling": "".join(map(str, found)) or "own",
        "instruction": instruction,
        "dimension": dim,
        "max_length": model.max_seq_length,
        "normalize": normalize,
        "dtype": str(kind).removeprefix("torch."),
        "device": device.type,
        "versions": versions("transformers", "sentence_transformers"),
    }
    return Encoder(dim, encode, about)


def with_pooling(library, model, mode):
    """The model with another pooling of its token vectors; what follows the pooling stays."""
    pooling = require("sentence_transformers.sentence_transformer.modules").Pooling
    first, *rest = model
    rest = [module for module in rest if not isinstance(module, pooling)]
    return library.SentenceTransformer(
        modules=[first, pooling(first.get_embedding_dimension(), mode), *rest], device=str(model.device)
    )


# ---------------------------------------------------------------- pictures


def image_encoder(name, *, revision, device, dtype, normalize, trust_remote_code):
    """A model with get_image_features: CLIP and SigLIP (their image embedding), LLaVA (the mean over the patches of what its
    vision tower and projector hand to the language model, in that model's embedding space).

    Of a LLaVA model the language model's layers are not even read. Raises UserError for a model that cannot be loaded, or
    whose weights do not fit.
    """
    library = require("transformers")
    require("PIL")
    device, kind = choose(device, dtype)
    pinned = {"revision": revision or "main", "trust_remote_code": bool(trust_remote_code)}
    with loading(name):
        processor = library.AutoImageProcessor.from_pretrained(name, backend="pil", **pinned)
        config = library.AutoConfig.from_pretrained(name, **pinned)
        if config.model_type.startswith("llava"):
            config.text_config.num_hidden_layers = 0
        model, report = library.AutoModel.from_pretrained(
            name, config=config, dtype=kind, use_safetensors=True, output_loading_info=True, **pinned
        )
        if report["missing_keys"]:
            raise ValueError(f"its files lack weights, as {sorted(report['missing_keys'])[0]}")
        if not hasattr(model, "get_image_features"):
            raise ValueError(f"{config.model_type} has no image features: take a CLIP, SigLIP or LLaVA model")
    model.eval().to(device)

    def encode(pictures):
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(device, kind)
        with torch.inference_mode():
            rows = model.get_image_features(pixel_values=pixels)
        rows = getattr(rows, "pooler_output", rows)  # [n, dim], or for each picture [patches, dim]
        rows = (
            torch.stack([row.float().mean(0) if row.ndim == 2 else row.float() for row in rows]).cpu().numpy()
        )
        return unit_rows(rows) if normalize else rows

    grey = require("PIL.Image").new("RGB", (64, 64), (127, 127, 127))
    about = {
        "model": name,
        "revision": model_revision(name, config),
        "model_type": config.model_type,
        "pooling": "mean of projected patches"
        if config.model_type.startswith("llava")
        else "image embedding",
        "normalize": normalize,
        "dtype": str(kind).removeprefix("torch."),
        "device": device.type,
        "versions": versions("transformers", "PIL"),
    }
    return Encoder(encode([grey]).shape[1], encode, about)
