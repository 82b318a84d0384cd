"""Models in folders, and folders for models."""

from __future__ import annotations

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
