"""Tensors and JSON in one file that cannot run code: safetensors, with a version and a checksum. See `write` and `read`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .config import UserError
from .files import write_whole

VERSION = 1


class StorageError(UserError):
    """A file that cannot be read or written; one line that names it."""


def write(path: Path, kind: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and JSON content whole or not at all; kind is "model" or "checkpoint". StorageError where it cannot be."""
    # copies: tensors that share memory would be refused
    stored = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    header: dict[str, Any] = {"kind": kind, "version": VERSION, "content": dict(content)}
    header["sha256"] = _digest(header, stored)
    try:
        # one key of metadata only: their order in the file is not fixed
        write_whole(path, save(stored, {"gdssm": json.dumps(header, allow_nan=False)}))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from None


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and content of a file that `write` made, on the CPU.

    Raises StorageError where the file is missing, of another format, kind or version, or was changed after writing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["gdssm"])
        found_kind, version, content, digest = (header.pop(name) for name in ("kind", "version", "content", "sha256"))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StorageError(f"{path}: is damaged, or is no file that gdssm wrote") from None
    if version != VERSION:
        raise StorageError(f"{path}: has format version {version!r}, this gdssm reads version {VERSION}")
    if digest != _digest({"kind": found_kind, "version": version, "content": content}, tensors):
        raise StorageError(f"{path}: is damaged: its content does not match its checksum")
    if found_kind != kind:
        raise StorageError(f"{path}: holds a {found_kind}, a {kind} is needed")
    return tensors, content


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything in the file: the header's JSON, and each tensor's name, type, shape and bytes."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
