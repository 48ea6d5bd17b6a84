"""The options all commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**64 - 1, metavar="N", help="Seed of everything random.")]
NoSeed = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**64 - 1, metavar="N", help="Accepted for scripts; this command draws nothing."),
]
OutFile = Annotated[Path | None, typer.Option("--out", "-o", help="Write the JSON document to this file as well.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run (what prune --out made).")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Samples per batch.")]
Workers = Annotated[
    int, typer.Option("--workers", min=0, metavar="N", help="Processes that read and decode data; 0: this one does.")
]

MODEL_HELP = "timm:NAME · torchvision:NAME · hf:FOLDER · path/to/file.py:function · package.module:function"
DATA_HELP = "a folder of images, .tar shards, .parquet files, or a .safetensors or .npz file"
WEIGHTS_HELP = "A safetensors checkpoint for MODEL; 'random' leaves a model of timm or torchvision untrained."

CHECKPOINT_HELP = "a .safetensors file, its index or folder"


class Engine(str, Enum):
    """Where layer jobs run."""

    local, ray = "local", "ray"

    @property
    def name_or_none(self) -> Literal["ray"] | None:
        """As the functions of the package take it."""
        return "ray" if self is Engine.ray else None


EngineOption = Annotated[Engine, typer.Option("--engine", help="local: threads of this process; ray: a cluster.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="HOST:PORT", help="Of the Ray cluster; else one is started here.")
]


def is_spec(model: str) -> bool:
    """Whether ``model`` names something to build, rather than a checkpoint."""
    place, colon, function = model.rpartition(":")
    named = (
        bool(colon) and function.isidentifier() and (place.endswith(".py") or place.replace(".", "_").isidentifier())
    )
    return model.startswith(("timm:", "torchvision:", "hf:")) or (named and not Path(model).exists())


def check_there(checkpoint: str) -> None:
    """Raise a FileNotFoundError that says how a model is named, for what is neither there nor named as a checkpoint."""
    path = Path(checkpoint)
    if not path.exists() and path.suffix not in (".safetensors", ".json"):
        raise FileNotFoundError(f"{checkpoint}: no such file or folder; a model to build is {MODEL_HELP}")


Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Weights = Annotated[str | None, typer.Option("--weights", "-w", metavar="FILE", help=WEIGHTS_HELP)]
