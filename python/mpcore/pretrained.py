"""Hugging Face folders as files: what lies beside the weights, and what of it goes where they go."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = "config.json"
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".npz",
    ".index.json",
)  # fmt: skip
"""Endings of files that hold weights, or say where they are."""


def companions(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a ``save_pretrained`` folder that hold no weights, such as config.json and a tokenizer's, by name.

    Empty where there is no config.json. Hidden files and sub-folders are left out.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("config.json", "model.safetensors", "vocab.txt"):
        ...     _ = (folder / name).write_text("{}")
        >>> [file.name for file in companions(folder)]
        ['config.json', 'vocab.txt']
    """
    root = Path(folder)
    if not (root / CONFIG).is_file():
        return []
    files = sorted(entry for entry in root.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return [file for file in files if not file.name.endswith(_WEIGHTS)]
