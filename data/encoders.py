"""Frozen large models that encode texts or pictures as vectors.

    encoder = text_encoder("Qwen/Qwen3-Embedding-8B", revision=None, device="cuda", ...)
    encoder.encode(["a text", "another"])        # [2, encoder.dim] float32

Weights are read from safetensors files only, and code that comes with a model runs only with
--trust_remote_code 1.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data.web import check_key
from layers.device import on_cpu
from utils import UserError

# The hub's library would add a session id to its requests, and ask the hub which program has called it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Import name -> package name, where they differ.
PACKAGES = {"sentence_transformers": "sentence-transformers", "PIL": "pillow"}
# --pooling -> its name in sentence-transformers.
POOLING = {"last": "lasttoken", "mean": "mean", "cls": "cls"}
# Files of a local model folder that determine its vectors.
MODEL_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja", ".py"}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A loaded model."""

    dim: int
    # List of inputs -> [n, dim] float32; the same list always gives the same vectors.
    encode: Callable[[list[Any]], np.ndarray]
    # What determines the vectors: model, revision, settings, versions.
    about: dict[str, Any]


def require(module: str) -> Any:
    """Import an optional package. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.split(".", maxsplit=1)[0]
        package = PACKAGES.get(name, name)
        raise UserError(
            f"this command needs {package} ({error}); install it with: "
            "pip install -c constraints.txt -e '.[features]'"
        ) from None


@contextlib.contextmanager
def loading(name: str, token: str | Literal[False]) -> Iterator[None]:
    """Turn any exception raised while a model is loaded into one UserError, and silence the libraries.

    token: the one that the hub gets, see hub_token.
    """
    if name.startswith(("/", "./", "../")) and not Path(name).is_dir():
        raise UserError(f"--model {name}: no such folder")
    require("transformers").logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    # The libraries raise OSError, ValueError, KeyError, SafetensorError and more.
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        hint = token_hint(name, token)
        raise UserError(
            f"--model {name}: cannot be loaded ({reason}); name a model of the Hugging Face hub or a folder "
            f"with config.json, tokenizer or image processor, and safetensors weights{hint}"
        ) from None


def token_hint(name: str, token: str | Literal[False]) -> str:
    """What to add to an error about a model, if a token may be missing, else ""."""
    if token or Path(name).is_dir():
        return ""
    unused = "; HF_TOKEN is set, but sent only if you say so" if os.environ.get("HF_TOKEN") else ""
    return f"; a gated or private model needs --hub_token_env HF_TOKEN{unused}"


def use_hub_proxy(proxy: str) -> None:
    """Let the hub's library use a proxy, unless it is "": it knows those of the environment alone."""
    if proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ[name] = os.environ[name.upper()] = proxy


def hub_token(variable: str) -> str | Literal[False]:
    """The hub token in an environment variable; False, which keeps the libraries from sending any, for "".

    Raises UserError for a missing or malformed token, or if $HF_ENDPOINT would get it unencrypted.
    """
    if not variable:
        return False
    token = os.environ.get(variable, "")
    if not token:
        raise UserError(f"--hub_token_env {variable}: is not set; set it, or leave the flag out")
    check_key(token, f"--hub_token_env {variable}:")
    endpoint = require("huggingface_hub.constants").ENDPOINT
    if not endpoint.startswith("https://"):
        raise UserError(f"--hub_token_env: HF_ENDPOINT {endpoint} would get the token unencrypted; use https")
    return token


def choose_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of --device and --dtype.

    auto: a GPU if there is one, and bfloat16 there, else float32.
    """
    try:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
        # Fail here if the device does not work.
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UserError(f"--device {device}: cannot be used ({reason}); use cpu or cuda") from None
    if dtype == "auto":
        dtype = "float32" if on_cpu(chosen) else "bfloat16"
    return chosen, getattr(torch, dtype)


def model_revision(name: str | Path, config: Any) -> str | None:
    """What identifies the weights: the commit of a hub model, or a hash of the files of a local folder."""
    folder = Path(name)
    if not folder.is_dir():
        return getattr(config, "_commit_hash", None)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in MODEL_SUFFIXES and path.is_file():
            with open(path, "rb") as file:
                file_digest = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}:{file_digest};".encode())
    return f"sha256:{digest.hexdigest()}"


def versions(*modules: str) -> dict[str, str]:
    """{package: version} of torch and these modules."""
    return {"torch": torch.__version__, **{name: require(name).__version__ for name in modules}}


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype, such as 'float32'."""
    return str(dtype).removeprefix("torch.")


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of x [n, dim] scaled to length 1; rows of zeros stay zero."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)


# ---------------------------------------------------------------- text


def text_encoder(
    name: str,
    *,
    revision: str | None,
    device: str,
    dtype: str,
    pooling: str,
    instruction: str,
    dimension: int,
    max_length: int,
    normalize: int,
    trust_remote_code: int,
    token: str | Literal[False] = False,
) -> Encoder:
    """Load a sentence-transformers model, or any Hugging Face text model with a pooling layer on top.

    pooling: last, mean or cls; auto: as configured in the model's folder, else the last token of a causal
    language model and the mean of others. instruction: verbatim prefix of every text. dimension: leading
    dimensions to keep (Matryoshka models), 0 for all. max_length: tokens, longer texts are truncated; 0 for
    the model's own limit. token: see hub_token. Raises UserError for a model that cannot be loaded, or a
    dimension beyond the model's.
    """
    library = require("sentence_transformers")
    torch_device, torch_dtype = choose_device(device, dtype)
    with loading(name, token):
        model = library.SentenceTransformer(
            name,
            device=str(torch_device),
            revision=revision,
            trust_remote_code=bool(trust_remote_code),
            token=token,
            model_kwargs={"dtype": torch_dtype, "use_safetensors": True},
        )
        if pooling != "auto":
            model = with_pooling(library, model, POOLING[pooling])
        model.eval()
        if max_length:
            model.max_seq_length = min(max_length, model.max_seq_length or max_length)
        model_dim = model.get_embedding_dimension()
    if dimension > model_dim:
        raise UserError(f"--dimension {dimension}: the model has {model_dim} dimensions; give fewer, or 0")
    dim = dimension or model_dim

    def encode(texts: list[str]) -> np.ndarray:
        rows = model.encode(
            texts, prompt=instruction, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True
        )
        rows = rows[:, :dim].float().cpu().numpy()
        return unit_rows(rows) if normalize else rows

    modes = [str(module.pooling_mode) for module in model if hasattr(module, "pooling_mode")]
    about = {
        "model": name,
        "revision": model_revision(name, model[0].auto_model.config),
        "pooling": "".join(modes) or "own",
        "instruction": instruction,
        "dimension": dim,
        "max_length": model.max_seq_length,
        "normalize": normalize,
        "dtype": dtype_name(torch_dtype),
        "device": torch_device.type,
        "versions": versions("transformers", "sentence_transformers"),
    }
    return Encoder(dim, encode, about)


def with_pooling(library: Any, model: Any, mode: str) -> Any:
    """The model with another pooling layer; the layers after it are kept."""
    pooling = require("sentence_transformers.sentence_transformer.modules").Pooling
    transformer, *others = model
    others = [module for module in others if not isinstance(module, pooling)]
    modules = [transformer, pooling(transformer.get_embedding_dimension(), mode), *others]
    return library.SentenceTransformer(modules=modules, device=str(model.device))


# ---------------------------------------------------------------- pictures


def image_encoder(
    name: str,
    *,
    revision: str | None,
    device: str,
    dtype: str,
    normalize: int,
    trust_remote_code: int,
    token: str | Literal[False] = False,
) -> Encoder:
    """Load a model with image features.

    CLIP and SigLIP give their image embedding. LLaVA gives the mean over the patches of the output of its
    vision tower and projector, which is in the embedding space of its language model; the layers of that
    model are not loaded. token: see hub_token. Raises UserError for a model that cannot be loaded, or whose
    weights are incomplete.
    """
    library = require("transformers")
    require("PIL")
    torch_device, torch_dtype = choose_device(device, dtype)
    with loading(name, token):
        source = {
            "revision": revision or "main",
            "trust_remote_code": bool(trust_remote_code),
            "token": token,
        }
        processor, model, config = load_image_model(library, name, torch_dtype, source)
    model.eval().to(torch_device)

    def encode(pictures: list[Any]) -> np.ndarray:
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(torch_device, torch_dtype)
        with torch.inference_mode():
            output = model.get_image_features(pixel_values=pixels)
        # [n, dim]; for LLaVA one [patches, dim] per picture.
        output = getattr(output, "pooler_output", output)
        vectors = [row.float().mean(0) if row.ndim == 2 else row.float() for row in output]
        rows = torch.stack(vectors).cpu().numpy()
        return unit_rows(rows) if normalize else rows

    is_llava = config.model_type.startswith("llava")
    grey = require("PIL.Image").new("RGB", (64, 64), (127, 127, 127))
    about = {
        "model": name,
        "revision": model_revision(name, config),
        "model_type": config.model_type,
        "pooling": "mean of projected patches" if is_llava else "image embedding",
        "normalize": normalize,
        "dtype": dtype_name(torch_dtype),
        "device": torch_device.type,
        "versions": versions("transformers", "PIL"),
    }
    return Encoder(encode([grey]).shape[1], encode, about)


def load_image_model(
    library: Any, name: str, dtype: torch.dtype, source: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """(image processor, model, config). source: how the hub is asked.

    Raises ValueError if the model lacks weights or image features.
    """
    processor = library.AutoImageProcessor.from_pretrained(name, backend="pil", **source)
    config = library.AutoConfig.from_pretrained(name, **source)
    if config.model_type.startswith("llava"):
        config.text_config.num_hidden_layers = 0
    model, report = library.AutoModel.from_pretrained(
        name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **source
    )
    if report["missing_keys"]:
        raise ValueError(f"its files lack weights, such as {min(report['missing_keys'])}")
    if not hasattr(model, "get_image_features"):
        raise ValueError(f"{config.model_type} has no image features: use a CLIP, SigLIP or LLaVA model")
    return processor, model, config
