"""A tiny random model of every family that `nestling.convert` is tested on, 3 blocks of width 16."""

from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCAB = 40
SIZE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
SIZE |= {"num_attention_heads": 4, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
GROUPED = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT2: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 16, "n_inner": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 8}),
    "gpt2": ("GPT2", {**GPT2, "initializer_range": 0.3, "eos_token_id": 1, "bos_token_id": 1}),
    "gpt-neox": ("GPTNeoX", {**SIZE, "max_position_embeddings": 64}),
    "phi": ("Phi", GROUPED),
    "olmo": ("Olmo", GROUPED),
    "gemma3": ("Gemma3", {**GROUPED, "head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 3}),
}


def decoder(family: str, seed: int = 0, **changes: Any) -> Any:
    """The same weights for the same seed, whatever was drawn before."""
    kind, settings = DECODERS[family]
    suffix = "TextConfig" if kind == "Gemma3" else "Config"
    config = getattr(hf, f"{kind}{suffix}")(**{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return hf.AutoModelForCausalLM.from_config(config).eval()


def encoder(seed: int = 0, **changes: Any) -> Any:
    """BERT in the shape of MiniLM, smaller."""
    config = hf.BertConfig(**{**SIZE, "max_position_embeddings": 64, "type_vocab_size": 2, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return hf.BertModel(config).eval()


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random tokens `[rows, length]`, none of them padding or an end."""
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
