"""What to do to a model: one small frozen record, read from a dataclass call, a name in the package or a TOML file."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mpcore.records import Pattern

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHOICES = {
    "score": ("magnitude", "wanda", "activation", "quadratic"),
    "solver": ("none", "lstsq", "sparsegpt", "admm"),
    "sequence": ("parallel", "sequential", "asymmetric"),
    "budget": ("uniform", "seb", "seb-corrected", "rmt-2025", "knapsack"),
    "unit": ("macs", "weights"),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is pruned. The defaults keep the most accuracy that was measured (docs/results.md).

    Args:
        pattern: ``"2:4"``, or a table ``{"*": "2:4", "blocks.0.*": "dense"}`` of globs over layer names; later
            entries win. The full name of a layer that stays dense for what it is (a classifier head) asks for it.
        score: what a weight is worth in masks and permutations: ``magnitude`` |w|; ``wanda`` |w| sqrt(E x^2);
            ``activation`` w^2 Var x; ``quadratic`` the exact in-group cost r' C_g r (masks) with ``activation``
            (permutation).
        permute: reorder input channels where that can be folded into the neighbouring layers; ``"residual"`` reorders
            whole residual streams too, where the exported network proves that they are free; ``"gather"`` lets every
            other layer read its channels in another order at run time, for a copy of its input; ``"interleave"``
            deals the columns by falling score instead of searching, as the paper does.
        solver: ``none`` keeps the target's weights under the mask, which are the dense ones unless ``sequence`` is
            ``asymmetric``; ``lstsq`` refits them to the layer's outputs; ``sparsegpt`` and ``admm`` choose mask and
            weights together.
        sequence: inputs of the layer-wise problem: ``parallel`` from the dense model; ``sequential`` from the
            already pruned prefix; ``asymmetric`` from the pruned prefix, fitted to the dense path's outputs.
        budget: ``uniform``; ``seb`` (Spectral Edge Budgeting, from the spectra alone); ``seb-corrected`` (the same
            from the whole bound: noise, norm of the inputs, measured answer of the logits); ``rmt-2025`` (shares of
            the predecessor's rule); ``knapsack`` (a candidate per layer, the least measured harm that takes no more
            than ``pattern`` everywhere). docs/method.md.
        candidates: patterns that ``knapsack`` may give to a layer, besides leaving it dense.
        unit: what ``knapsack`` counts: ``macs`` or ``weights``.
        sensitivity_samples: calibration samples on which layers are pruned one by one for these two budgets.
        skip: globs over layer names that stay dense; each must match a layer.
        damping: added to the diagonal of the input moments, relative to its mean.
        positions: at most so many positions of an image enter the moments of a convolution.
        permute_rounds: assignment rounds of the permutation search; fixed, so that a run can be repeated bit for bit.
        certify_samples: calibration samples on which the certificate is measured after every layer.
        tome: tokens that every block of the pruned vision transformer merges (:mod:`mpcore.models.tome`); 0 for none.
            Layers are pruned without merging; certificate, evaluation and distillation are with it.

    Raises:
        ValueError: for a choice that does not exist.

    Example:
        >>> Recipe(pattern="8:16", solver="lstsq").sequence
        'asymmetric'
    """

    pattern: str | dict[str, str] = "2:4"
    score: str = "activation"
    permute: bool | str = True
    solver: str = "admm"
    sequence: str = "asymmetric"
    budget: str = "uniform"
    candidates: tuple[str, ...] = ("1:4", "2:4", "3:4", "8:16", "12:16")
    unit: str = "macs"
    sensitivity_samples: int = 96
    skip: tuple[str, ...] = ()
    damping: float = 0.01
    positions: int = 196
    permute_rounds: int = 150
    certify_samples: int = 32
    tome: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"recipe: {name} = {value!r} is not one of {', '.join(choices)}")
        if self.permute not in (True, False, "residual", "gather", "interleave"):
            wanted = "true, false, 'residual', 'gather' or 'interleave'"
            raise ValueError(f"recipe: permute = {self.permute!r} is not {wanted}")
        for value in self.pattern.values() if isinstance(self.pattern, dict) else (self.pattern,):
            if value != "dense":
                Pattern(value)
        if not 0 < self.damping < 1:
            raise ValueError(f"recipe: damping = {self.damping} is not between 0 and 1")
        for name in ("positions", "certify_samples", "sensitivity_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe: {name} = {getattr(self, name)} is not at least 1")
        if self.tome < 0:
            raise ValueError(f"recipe: tome = {self.tome} is negative")
        if self.budget != "uniform" and isinstance(self.pattern, dict):
            raise ValueError(
                f"recipe: budget = {self.budget!r} chooses the patterns itself and needs one pattern, not a table"
            )
        for name in ("skip", "candidates"):
            if isinstance(given := getattr(self, name), str):
                raise ValueError(f"recipe: {name} = {given!r} is a string, wanted a tuple of strings: ({given!r},)")
        for value in self.candidates:
            Pattern(value)
        object.__setattr__(self, "skip", tuple(self.skip))
        object.__setattr__(self, "candidates", tuple(self.candidates))

    @property
    def asked_for(self) -> tuple[str, ...]:
        """Keys of the pattern table that have a pattern; a full name among them asks for a layer, whatever its role."""
        return tuple(k for k, v in self.pattern.items() if v != "dense") if isinstance(self.pattern, dict) else ()

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "recipe") -> Recipe:
        """A recipe from plain data; unknown keys are refused by name."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key in data:
            if key not in names:
                raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(names)}")
        for field in dataclasses.fields(cls):
            wanted = type(field.default)
            value = data.get(field.name, field.default)
            if field.name == "pattern":
                fits = isinstance(value, (str, dict))
            elif field.name == "permute":
                fits = isinstance(value, (bool, str))
            elif wanted is tuple:
                fits = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
            elif wanted is float:
                fits = isinstance(value, (int, float)) and not isinstance(value, bool)
            else:
                fits = type(value) is wanted
            if not fits:
                raise ValueError(f"{where}: {field.name} = {value!r} is not a {wanted.__name__}")
        return cls(**data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a TOML file.

        Raises:
            ValueError: naming the file, if it is not TOML or not a recipe.
            FileNotFoundError: if it does not exist.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a TOML file ({error})") from None
        return cls.from_dict(data, str(path))

    @classmethod
    def named(cls, name: str) -> Recipe:
        """One of the recipes in the package (``Recipe.names()``)."""
        if name not in cls.names():
            hint = f"; a pattern is given as Recipe(pattern={name!r})" if ":" in name else ""
            raise ValueError(f"recipe {name!r} is not in the package; it has {', '.join(cls.names())}{hint}")
        text = (resources.files("mpcore.models") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        return cls.from_dict(tomllib.loads(text), name)

    @staticmethod
    def names() -> list[str]:
        """Names that :meth:`named` takes."""
        folder = resources.files("mpcore.models") / "recipes"
        return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))

    @classmethod
    def of(cls, recipe: Recipe | str | os.PathLike[str]) -> Recipe:
        """A recipe as it is, by name, or from a path that ends in .toml."""
        if isinstance(recipe, Recipe):
            return recipe
        text = os.fspath(recipe)
        return cls.load(text) if text.endswith(".toml") else cls.named(text)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` takes."""
        return {**dataclasses.asdict(self), "skip": list(self.skip), "candidates": list(self.candidates)}
