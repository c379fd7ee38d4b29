"""Command-line flags of data.features, grouped by subject."""

import argparse
from collections.abc import Callable
from typing import Any

from data.encoders import POOLING
from data.network_flags import add_proxy_flag


def at_least(low: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """A type for argparse: a number of this kind from `low` to 2^31."""

    def convert(text: str) -> Any:
        value = kind(text)
        # Also refuses NaN, for which every comparison is false.
        if not low <= value <= 2**31:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {2**31}")
        return value

    # argparse names the type in its error messages.
    convert.__name__ = kind.__name__
    return convert


def add_common_flags(parser: argparse.ArgumentParser, model: str, missing: str) -> None:
    """Flags of all three commands."""
    parser.add_argument("name", metavar="NAME", help="dataset folder below --data_root")
    parser.add_argument(
        "--data_root", default="data", metavar="DIR", help="folder that holds the dataset folders"
    )
    parser.add_argument(
        "--out", default="", metavar="FILE", help="the .npy to write; empty: in the dataset folder"
    )
    parser.add_argument(
        "--model", default=model, metavar="NAME", help="model of the Hugging Face hub, or a folder"
    )
    parser.add_argument("--revision", default="", metavar="REV", help="commit, tag or branch of a hub model")
    parser.add_argument(
        "--hub_token_env",
        default="",
        metavar="VAR",
        help="environment variable that holds a hub token, for gated models, such as HF_TOKEN; empty: no "
        "token is sent, whatever HF_TOKEN says",
    )
    add_proxy_flag(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if present")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="dtype of the model; auto: bfloat16 on a GPU, else float32",
    )
    parser.add_argument(
        "--batch_size",
        type=at_least(1),
        default=16,
        metavar="N",
        help="inputs per batch; affects the last bits of the vectors",
    )
    parser.add_argument(
        "--normalize", type=int, choices=(0, 1), default=1, help="1: scale every vector to length 1"
    )
    parser.add_argument(
        "--missing",
        default=missing,
        choices=("zeros", "mean"),
        help="row of an id without input: zeros (no neighbours in the kNN graph) or the mean of the others",
    )
    parser.add_argument(
        "--save_dtype", default="float32", choices=("float16", "float32"), help="dtype of the .npy"
    )
    parser.add_argument(
        "--trust_remote_code",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: run Python code that comes with the model; only for authors you trust",
    )
    parser.add_argument(
        "--ids",
        default="internal",
        choices=("internal", "original"),
        help="ids in the files that flags name; original ones are looked up in item_ids.tsv (user_ids.tsv)",
    )


def add_text_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the text model."""
    parser.add_argument(
        "--pooling",
        default="auto",
        choices=("auto", *POOLING),
        help="how token vectors become one; auto: as configured in the model's folder, else the last token "
        "of a causal language model and the mean of others",
    )
    parser.add_argument(
        "--instruction",
        default="",
        metavar="TEXT",
        help="verbatim prefix of every text; Qwen3-Embedding wants one for queries, none for documents",
    )
    parser.add_argument(
        "--dimension",
        type=at_least(0),
        default=0,
        metavar="N",
        help="keep the first N dimensions (Matryoshka models); 0: all",
    )
    parser.add_argument(
        "--max_length",
        type=at_least(0),
        default=1024,
        metavar="N",
        help="truncate texts to N tokens, or to the model's limit if that is lower; 0: the model's limit",
    )


def add_request_flags(parser: argparse.ArgumentParser, workers: int, timeout: float) -> None:
    """Flags of requests over the network."""
    parser.add_argument(
        "--workers", type=at_least(1), default=workers, metavar="N", help="parallel requests (or pictures)"
    )
    parser.add_argument(
        "--attempts", type=at_least(1), default=5, metavar="N", help="attempts before a request has failed"
    )
    parser.add_argument(
        "--timeout", type=at_least(0.01, float), default=timeout, metavar="S", help="seconds per attempt"
    )
    parser.add_argument(
        "--backoff",
        type=at_least(0.0, float),
        default=1.0,
        metavar="S",
        help="seconds before the second attempt, doubled for each further one",
    )


def add_field_flags(parser: argparse.ArgumentParser, id_field: str, inputs: str) -> None:
    """Flags that name the fields of JSON lines."""
    parser.add_argument("--id_field", default=id_field, metavar="FIELD", help=f"field of the id in {inputs}")
    parser.add_argument(
        "--text_field",
        default="",
        metavar="FIELD",
        help="field of the text; empty: text, or title, brand, categories and description together",
    )


def add_texts_flag(parser: argparse.ArgumentParser) -> None:
    """The flag --texts."""
    parser.add_argument(
        "--texts",
        default="",
        metavar="FILE",
        help="JSON lines of item texts; empty: item_text.jsonl of the dataset folder",
    )


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the image command alone."""
    parser.add_argument("--pictures", default="", metavar="DIR", help="folder of pictures named by item id")
    parser.add_argument(
        "--urls", default="", metavar="FILE", help="instead: JSON lines, or lines of id, tab, URL"
    )
    parser.add_argument(
        "--cache",
        default="",
        metavar="DIR",
        help="folder for fetched pictures; empty: pictures/ of the dataset folder",
    )
    parser.add_argument(
        "--id_field", default="item", metavar="FIELD", help="field of the id in JSON lines of --urls"
    )
    parser.add_argument(
        "--url_field", default="url", metavar="FIELD", help="field of the URL in JSON lines of --urls"
    )


def add_address_flag(parser: argparse.ArgumentParser) -> None:
    """The flag --allow_private."""
    parser.add_argument(
        "--allow_private",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: fetch pictures also from private addresses: this machine and its network",
    )


def add_user_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the users command alone."""
    parser.add_argument(
        "--endpoint",
        default="",
        metavar="URL",
        help="an OpenAI-compatible server, URL up to and including /v1",
    )
    parser.add_argument("--llm", default="", metavar="NAME", help="name of the chat model on that server")
    parser.add_argument(
        "--api_key_env",
        default="OPENAI_API_KEY",
        metavar="VAR",
        help="environment variable that holds the API key, if any",
    )
    parser.add_argument(
        "--temperature", type=at_least(0.0, float), default=0.6, metavar="X", help="sampling temperature"
    )
    parser.add_argument(
        "--max_tokens",
        type=at_least(1),
        default=8192,
        metavar="N",
        help="tokens of a reply, including reasoning",
    )
    parser.add_argument(
        "--llm_seed", type=at_least(0), default=2025, metavar="N", help="seed sent with every request"
    )
    parser.add_argument(
        "--max_history",
        type=at_least(1),
        default=50,
        metavar="N",
        help="train items in a prompt: the last N in the order of the file",
    )
    parser.add_argument(
        "--max_chars",
        type=at_least(1),
        default=400,
        metavar="N",
        help="characters of each item's text in a prompt",
    )
    parser.add_argument(
        "--until",
        default="features",
        choices=("prompts", "profiles", "features"),
        help="stop after writing user_prompts.jsonl or user_profiles.jsonl",
    )
    parser.add_argument(
        "--profiles", default="", metavar="FILE", help="JSON lines of finished user texts; no model is asked"
    )
