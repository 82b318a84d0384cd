"""Models in folders, and folders for models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.cli.terminal import sentence
from nestling.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nestling.models import LearningModel


def load(folder: str) -> tuple[PreTrainedModel, Any]:
    """A saved model, Hope or converted or another, and its tokenizer; a UserError says what is wrong with the folder."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    import nestling.models  # noqa: F401 - registers its models

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} holds no model (no config.json); give a folder that a model was saved in")
    if not any((Path(folder) / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        raise UserError(
            f"{folder} holds no tokenizer; save the model's tokenizer there: tokenizer.save_pretrained({folder!r})"
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        speaking = AutoModelForCausalLM._model_mapping.get(type(config), None)  # BERT can, but was seldom saved so
        saved = config.architectures or []
        kind = AutoModelForCausalLM if getattr(speaking, "__name__", None) in saved else AutoModel
        return kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    except (OSError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded: {sentence(error)}") from None


def outline(model: str) -> PreTrainedModel:
    """A model of a folder, or of the local cache by its name, without its weights: its configuration is all that is read."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    import nestling.models  # noqa: F401 - registers its models

    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise UserError(f"{model} holds no model (no config.json); give a folder that a model was saved in")
    try:
        offline = os.environ.get("HF_HUB_OFFLINE", "1").upper() in ("1", "ON", "YES", "TRUE")
        config = AutoConfig.from_pretrained(model, local_files_only=offline)
    except OSError:
        raise UserError(
            f"{model} is no folder with a model, and no model of that name is in the local cache; give a folder that a model was "
            "saved in, or set HF_HUB_OFFLINE=0 to ask the hub"
        ) from None
    except (KeyError, ValueError) as error:
        raise UserError(f"the configuration of {model} cannot be read: {sentence(error)}") from None
    kinds = [auto._model_mapping.get(type(config), None) for auto in (AutoModelForCausalLM, AutoModel)]
    saved = config.architectures or []
    kinds = [*kinds, *(getattr(transformers, name, None) for name in saved)]
    named = [kind for kind in kinds if getattr(kind, "__name__", None) in saved]
    found = [kind for kind in (*named, *kinds) if isinstance(kind, type)]
    if not found:
        raise UserError(f"{model} has a {type(config).__name__}, and no model class of transformers fits it")
    with torch.device("meta"), no_init_weights():
        network = found[0]._from_config(config)
    network.tie_weights()
    return network


def load_learning(folder: str) -> tuple[LearningModel, Any]:
    """A saved model with levels."""
    from nestling.models import LearningModel

    network, tokenizer = load(folder)
    if not isinstance(network, LearningModel):
        raise UserError(
            f"{folder} holds a {type(network).__name__}, which has no levels; `nestling convert` gives it some"
        )
    return network, tokenizer


def refuse_to_overwrite(folder: str) -> None:
    """Raise where something would be overwritten."""
    if Path(folder).is_dir() and not any(Path(folder).iterdir()):
        return
    if Path(folder).exists():
        raise UserError(f"{folder} exists already; give a folder that is new or empty")
