"""Tiny randomly initialised models of each class that data/features.py supports, and a local HTTP server."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCABULARY = "red blue green old new soft loud bottle toy shoe song band guitar warm cold night day of the a"
WORDS = VOCABULARY.split()


def save_tokenizer(folder, end=False):
    """Save a word tokenizer. Returns its vocabulary size.

    end: append the token <end> to every text, as Qwen3-Embedding does.
    """
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <end>", special_tokens=[("<end>", 2)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left" if end else "right",
        model_max_length=32,
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def save_qwen3(folder):
    """Qwen3, a causal language model: last-token pooling by default."""
    torch.manual_seed(1)
    config = transformers.Qwen3Config(
        vocab_size=save_tokenizer(folder, end=True),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def save_bert(folder):
    """BERT, an encoder: mean pooling by default."""
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=save_tokenizer(folder),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


LAYERS = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
VISION = {**LAYERS, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
TEXT = {**LAYERS, "num_hidden_layers": 1, "vocab_size": 24}
SQUARE = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}


def save_clip(folder):
    """CLIP: an image embedding of 12 dimensions."""
    torch.manual_seed(3)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(**SQUARE).save_pretrained(folder)
    return folder


def save_siglip(folder):
    """SigLIP: an image embedding of 16 dimensions."""
    torch.manual_seed(4)
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_llava(folder):
    """LLaVA-1.5: CLIP's vision tower and a projector to the 20 dimensions of a Llama."""
    torch.manual_seed(5)
    llama = transformers.LlamaConfig(
        vocab_size=32, hidden_size=20, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=llama, image_token_index=31
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(**SQUARE).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serve(answer):
    """Run a server on 127.0.0.1; answer(handler, body) writes each reply. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self, body)

        do_GET = do_POST = handle_any

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def reply(handler, body=b"", status=200, headers=()):
    """Send a complete reply."""
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
