"""A memory on disk: tensors in one safetensors file, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nestling.errors import UserError
from nestling.ops.state import laid_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = "nestling-memory-4"
READABLE = (FORMAT, "nestling-memory-3")  # before, what levels have in common was written once for each
UNRELATED = {"transformers_version", "dtype", "_name_or_path", "use_cache", "architectures", "outer_gradient"}
UNRELATED |= {"recall"}  # what levels learn does not depend on it


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of a model's weights and of the settings that a memory depends on: what a memory belongs to."""
    digest = hashlib.sha256()
    config = _settings(model.config.to_dict())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, and those inside of it, without what says only where and by what they were written."""
    kept = {key: value for key, value in config.items() if key not in UNRELATED}
    return {key: _settings(value) if isinstance(value, dict) else value for key, value in kept.items()}


def write(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the file beside its place and move it there: a reader, or a crash, sees the old file or the new one.

    A tensor that stands under several names is written once, and is one tensor again when it is read. One whose numbers lie in
    another order than its rows has it again, too: products round by it, and what goes on from a file goes on bit for bit.
    """
    first: dict[int, str] = {}
    same = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    same = {name: other for name, other in same.items() if name != other}
    strides = {n: t.stride() for n, t in tensors.items() if n not in same and not t.is_contiguous()}
    metadata = {**metadata, "same": json.dumps(same), "strides": json.dumps(strides)}
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from None
    os.close(handle)
    try:
        own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items() if n not in same}
        save_file(own, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: str | Path, model_fingerprint: str) -> dict[str, Tensor]:
    """The tensors by name. Raises UserError: missing, truncated, of another kind, or of another model."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; save a memory first, or give the path of one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
        strides = json.loads(metadata.get("strides", "{}"))
        tensors = {name: laid_out(tensor, strides.get(name, tensor.stride())) for name, tensor in tensors.items()}
        tensors |= {name: tensors[other] for name, other in json.loads(metadata.get("same", "{}")).items()}
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        RuntimeError,
        IndexError,
        TypeError,
    ) as error:
        raise UserError(f"{path} is no memory file, or is truncated ({error}); restore it from a copy") from None
    if metadata.get("format") not in READABLE:
        raise UserError(
            f"{path} has format {metadata.get('format')!r}, not {FORMAT!r}; give a file that a learner saved"
        )
    if metadata.get("model") != model_fingerprint:
        raise UserError(
            f"{path} is the memory of another model or configuration; load the model that it was saved with"
        )
    return tensors
