"""The options all commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of everything random.")]
NoSeed = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Accepted for scripts; this command draws nothing.")
]
OutFile = Annotated[Path | None, typer.Option("--out", "-o", help="Write the JSON document to this file as well.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run (what prune --out made).")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Samples per batch.")]

MODEL_HELP = "timm:NAME · hf:FOLDER · path/to/file.py:function · package.module:function"
DATA_HELP = "a folder of images, or a .safetensors or .npz file with 'inputs' and 'targets'"
WEIGHTS_HELP = "A safetensors checkpoint for MODEL; 'random' leaves a timm model untrained."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Weights = Annotated[str | None, typer.Option("--weights", "-w", metavar="FILE", help=WEIGHTS_HELP)]
