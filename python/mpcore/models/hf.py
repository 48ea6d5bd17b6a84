"""Hugging Face folders in and out: what ``save_pretrained`` wrote, and what ``from_pretrained`` reads.

A folder is named ``hf:PATH`` on the command line and ``{"hf": PATH}`` in a manifest. Nothing is downloaded, and no
code of the folder is run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from mpcore.folder import read_json
from mpcore.models.export import load
from mpcore.pretrained import CONFIG, companions
from mpcore.records import Manifest, MaskPlan

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers, as preprocessor_config.json has them."""


def load_pretrained(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a ``save_pretrained`` folder, in evaluation mode, and the ``source`` for :func:`mpcore.prune`.

    Args:
        folder: holds config.json, which names a class of transformers under ``architectures``, and the weights in
            safetensors files, one or several.

    Raises:
        FileNotFoundError: if the folder has no config.json.
        ValueError: if config.json names no class that transformers has, the weights lack a parameter, or
            preprocessor_config.json is not what transformers writes.
        ImportError: without transformers (``pip install mpcore[hf]``).
    """
    root = Path(folder).resolve()
    model, report = _class_of(root).from_pretrained(
        root, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{root}: its weights lack {missing[0]!r} and {len(missing) - 1} more")
    return _with_image_config(model.eval(), root), {"hf": str(root)}


def build_pretrained(folder: str | os.PathLike[str]) -> nn.Module:
    """The architecture config.json describes, with random weights."""
    root = Path(folder)
    made = _class_of(root)
    config = made.config_class.from_pretrained(root, local_files_only=True)
    return _with_image_config(made._from_config(config).eval(), root)


def save_pretrained(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    which: str | None = None,
) -> Path:
    """Write a finished run as a folder that ``from_pretrained`` reads.

    Weights have the names transformers gives them; config.json, tokenizer and every other file that holds no weights
    are copied. ``mpcore.json`` names the patterns.

    Args:
        run: the run folder.
        out: the folder to make; it appears whole or not at all.
        like: the folder the model came from; None takes it from the manifest.
        which: as in :func:`mpcore.load`.

    Raises:
        FileExistsError: if ``out`` exists.
        ValueError: if the run did not start from a Hugging Face folder and ``like`` is None, or if its layers read
            their channels through an order (``permute = "gather"``) or merge tokens, which the files cannot say.
    """
    manifest, target = Manifest.read(Path(run) / "manifest.json"), Path(out)
    given = like if like is not None else manifest.source.get("hf")
    if given is None:
        raise ValueError(f"{run}: did not start from a Hugging Face folder; pass like=")
    if target.exists():
        raise FileExistsError(f"{target}: exists; choose another folder")
    plan = MaskPlan.read(Path(run) / "plan.json")
    if manifest.recipe.get("tome") or any(group.gathered for group in plan.groups):
        raise ValueError(f"{run}: merges tokens or gathers channels at run time; transformers' files cannot say so")
    origin = Path(given)
    model: Any = load(run, build_pretrained(origin), which=which)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        model.save_pretrained(partial, safe_serialization=True)
        for file in companions(origin):
            shutil.copyfile(file, partial / file.name)
        patterns = {name: str(pattern) for name, pattern in manifest.patterns.items()}
        (partial / "mpcore.json").write_text(json.dumps({"version": manifest.version, "patterns": patterns}, indent=1))
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError("a Hugging Face folder needs transformers: pip install mpcore[hf]", name=error.name) from None


def _with_image_config(model: Any, folder: Path) -> nn.Module:
    """Say of an image model, where timm's transforms look, how the folder wants pictures prepared."""
    network: nn.Module = model
    size, channels = getattr(model.config, "image_size", None), getattr(model.config, "num_channels", 3)
    if size is None:
        return network
    height, width = (size, size) if isinstance(size, int) else size
    file = folder / "preprocessor_config.json"
    found = read_json(file) if file.is_file() else {}
    wanted = {key: value for key, value in found.items() if value is not None}  # null: the default
    scaled = wanted.get("size", {})  # a number or (height, width) in older files
    shortest = scaled.get("shortest_edge", height) if isinstance(scaled, dict) else height
    if (resample := wanted.get("resample", 2)) not in _RESAMPLING:
        raise ValueError(f"{file}: resample = {resample!r}, wanted a number from 0 to 5")
    model.pretrained_cfg = {
        "input_size": (channels, height, width),
        "mean": tuple(wanted.get("image_mean", (0.5,) * channels)),
        "std": tuple(wanted.get("image_std", (0.5,) * channels)),
        "crop_pct": wanted.get("crop_pct", height / shortest),
        "interpolation": _RESAMPLING[resample],
    }
    return network


def _class_of(folder: Path) -> Any:
    """The class config.json names."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no Hugging Face folder ({CONFIG} is missing)")
    names = read_json(folder / CONFIG).get("architectures") or []
    found = getattr(_transformers(), names[0], None) if names else None
    if not hasattr(found, "from_pretrained"):
        raise ValueError(f"{folder / CONFIG}: architectures = {names!r} names no class of transformers")
    return found
