"""A model from a name, as a command line or a manifest gives it.

``timm:NAME[,key=value...]`` · ``torchvision:NAME[,key=value...]`` · ``hf:FOLDER`` · ``path/to/file.py:function`` ·
``package.module:function``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpcore.checkpoint import open_weights

RANDOM = "random"
"""Value of ``weights`` for a model without its pretrained weights."""
_LIBRARIES = ("timm", "torchvision")
_AS_PRETRAINED: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
    "vit_h_14": {"image_size": 518},
}
"""Where torchvision builds another network with its pretrained weights than without: how to build that one."""


def load_model(
    spec: str, *, weights: str | os.PathLike[str] | None = None, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model ``spec`` names and give it its weights.

    Args:
        spec: ``timm:NAME``, ``timm:NAME,num_classes=10``, ``torchvision:NAME`` (classifiers), ``hf:FOLDER`` (as Hugging
            Face's ``save_pretrained`` writes), ``path/to/file.py:function`` or ``package.module:function``; the
            function takes no argument and returns an ``nn.Module``. Its code is run: name only what you trust.
        weights: a safetensors checkpoint to load, or ``"random"``; None takes the pretrained weights of the library
            (torchvision's ``DEFAULT``), or the weights the function returns.
        seed: of random weights.

    Returns:
        The model in evaluation mode, and what :func:`build_model` needs to make one like it.

    Raises:
        ValueError: if ``spec`` is none of these, names nothing, its code fails, or the weights do not fit; the message
            says which.
        FileNotFoundError: if a named file does not exist.
    """
    source = parse_model(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(source, pretrained=weights is None)
    if weights is not None and str(weights) != RANDOM:
        _load_weights(model, weights, spec)
    return model.eval(), source


def parse_model(spec: str) -> dict[str, Any]:
    """The plain description of a model that a manifest keeps as ``source``.

    Example:
        >>> parse_model("timm:vit_tiny_patch16_224,num_classes=10")
        {'timm': 'vit_tiny_patch16_224', 'kwargs': {'num_classes': 10}}
        >>> parse_model("my.networks:small")
        {'module': 'my.networks', 'function': 'small'}
    """
    kind, _, rest = spec.partition(":")
    if kind in _LIBRARIES:
        name, *pairs = rest.split(",")
        return {kind: name, "kwargs": dict(_parse_pair(pair, spec) for pair in pairs)}
    if kind == "hf":
        return {"hf": str(Path(rest).resolve())}
    place, _, function = spec.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(
            f"model {spec!r}: wanted timm:NAME, torchvision:NAME, hf:FOLDER, path/to/file.py:function or "
            "package.module:function"
        )
    if place.endswith(".py"):
        return {"file": str(Path(place).resolve()), "function": function}
    return {"module": place, "function": function}


def build_model(source: dict[str, Any]) -> nn.Module:
    """The architecture a manifest's ``source`` describes; its weights are whatever the constructor leaves.

    Raises:
        ValueError: if ``source`` is empty or of an unknown kind; pass the model yourself then.
    """
    return _build(source, pretrained=False).eval()


def _parse_pair(pair: str, spec: str) -> tuple[str, Any]:
    key, equals, text = pair.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"model {spec!r}: {pair!r} is not key=value")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def _build(source: dict[str, Any], *, pretrained: bool) -> nn.Module:
    if "timm" in source:
        return _build_timm(source["timm"], dict(source.get("kwargs", {})), pretrained=pretrained)
    if "torchvision" in source:
        return _build_torchvision(source["torchvision"], dict(source.get("kwargs", {})), pretrained=pretrained)
    if "hf" in source:
        from mpcore.models import hf

        return hf.load_pretrained(source["hf"])[0] if pretrained else hf.build_pretrained(source["hf"])
    if "file" in source:
        make = _function(_module_of_file(Path(source["file"])), source["function"], source["file"])
    elif "module" in source:
        make = _function(_import(source["module"]), source["function"], source["module"])
    else:
        raise ValueError("the run does not say how to build its model; pass the model itself")
    with _their_code(f"{source.get('file', source.get('module'))}:{source['function']}"):
        model = make()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source['function']}() returned a {type(model).__name__}, wanted an nn.Module")
    return model


def _build_timm(name: str, kwargs: dict[str, Any], *, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0]}*")[:3]
        raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    with _library(f"timm's {name}"), _quiet_hub():
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    return model


def _build_torchvision(name: str, kwargs: dict[str, Any], *, pretrained: bool) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known)
        other = "; only its classifiers can be named, others by a function" if name in models.list_models() else ""
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"torchvision has no classifier {name!r}{other or hint}")
    weights = models.get_model_weights(name).DEFAULT
    kwargs = kwargs if pretrained else _AS_PRETRAINED.get(name, {}) | kwargs
    with _library(f"torchvision's {name}"):
        model: Any = models.get_model_builder(name)(weights=weights if pretrained else None, **kwargs)
    prepared = weights.transforms()
    crop = prepared.crop_size[0]
    side = getattr(model, "image_size", crop)
    model.pretrained_cfg = {  # where timm's transforms look
        "input_size": (3, side, side),
        "mean": tuple(prepared.mean),
        "std": tuple(prepared.std),
        "crop_pct": crop / prepared.resize_size[0],
        "interpolation": prepared.interpolation.value,
    }
    network: nn.Module = model
    return network


@contextmanager
def _library(what: str) -> Iterator[None]:
    """An error of a library that builds a model becomes one line."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        if isinstance(error, OSError):
            raise ValueError(
                f"the pretrained weights of {what} could not be fetched ({told[:120]}); "
                "pass a safetensors file, or 'random', as weights"
            ) from error
        raise ValueError(f"{what} cannot be built so: {type(error).__name__}: {told}") from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the download client's retries out of the one-line error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    description = importlib.util.spec_from_file_location(f"_mpcore_source_{path.stem}", path)
    if description is None or description.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(description)
    with _their_code(str(path)):
        description.loader.exec_module(module)
    return module


@contextmanager
def _their_code(where: str) -> Iterator[None]:
    """An error of the user's own code becomes one line; what is missing or exhausted is told as everywhere."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if isinstance(error, SyntaxError) else f" ({place.filename}, line {place.lineno})"
        raise ValueError(f"{where}: {type(error).__name__}: {error}{at}") from error


def _import(name: str) -> Any:
    try:
        with _their_code(name):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"model: there is no module {name!r}") from None
        raise


def _function(module: Any, name: str, where: str) -> Callable[[], Any]:
    function: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{where}: has no function {name!r}")
    return function


def _load_weights(model: nn.Module, path: str | os.PathLike[str], spec: str) -> None:
    stored, wanted = open_weights(path), model.state_dict()
    missing, unknown = [n for n in wanted if n not in stored], [n for n in stored if n not in wanted]
    shapes = stored.shapes()
    bent = [name for name in wanted if name in shapes and shapes[name] != tuple(wanted[name].shape)]
    for names, what in ((missing, "lacks"), (unknown, "holds, but the model does not know,")):
        if names:
            raise ValueError(f"{path} {what} {names[0]!r} and {len(names) - 1} more; it does not fit {spec}")
    if bent:
        name = bent[0]
        raise ValueError(f"{path}: {name!r} is {shapes[name]}, {spec} wants {tuple(wanted[name].shape)}")
    model.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored})
