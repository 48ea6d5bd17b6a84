"""How good a model is on a labelled set, and how far it is from its teacher, with intervals."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpcore.certify import wilson
from mpcore.models.batches import call, check_logits, first, forward, is_class_numbers, place, split
from mpcore.models.memory import memory_kept
from mpcore.progress import progress_bar
from mpcore.records import EvalReport, EvalTable


@memory_kept()
def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    name: str = "model",
    progress: bool = False,
) -> EvalReport:
    """Accuracy, cross entropy and closeness to a teacher, in one pass over the data.

    Both models see a batch in evaluation mode, one after the other, so a generator will do; their modes are restored.
    Sums are kept in float64.

    Args:
        model: returns logits (n, classes).
        data: batches ``(inputs, targets)`` or ``inputs``; targets (n,) are class numbers.
        teacher: the model to agree with, usually the dense one; it may be ``model`` itself.
        name: what the report calls the model.
        progress: a bar on stderr.

    Returns:
        ``top1``, ``top5`` and ``nll`` are None without targets, ``agreement`` and ``kl`` = KL(teacher || model) in nats
        per sample without a teacher; ``top5`` is None too where there are five classes or fewer.

    Raises:
        TypeError: if ``model`` or ``teacher`` is no module, or ``data`` not an iterable of batches.
        ValueError: for no data, logits that are NaN, infinite or not (n, classes), targets that are no class numbers,
            or targets in some batches only. The message names model and batch.

    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> report = evaluate(net, [(torch.randn(50, 3), torch.zeros(50, dtype=torch.long))], teacher=net)
        >>> report.n, report.agreement, report.kl
        (50, 1.0, 0.0)
    """
    check_module(model, "model")
    if teacher is not None:
        check_module(teacher, "teacher")
    sums = _Sums(name, compares=teacher is not None)
    models = (model,) if teacher is None or teacher is model else (model, teacher)
    with eval_mode(*models), progress_bar(progress, f"evaluate {name}", _length(data)) as advance:
        for index, inputs, targets in _batches(data):
            where = f"batch {index}"
            student = _logits(model, inputs, f"model {name!r}, {where}")
            reference = None
            if teacher is not None:
                reference = student if teacher is model else _logits(teacher, inputs, f"teacher, {where}")
            sums.add(student, _checked(targets, student, where), reference, where)
            advance("")
    return sums.report()


def compare(models: Mapping[str, nn.Module], data: Sequence[Any], *, progress: bool) -> EvalTable:
    """Every model by its name on the same held-out batches; the teacher of all is ``models["dense"]``."""
    rows = tuple(
        evaluate(model, data, teacher=models["dense"], name=name, progress=progress) for name, model in models.items()
    )
    return EvalTable(rows, f"{rows[0].n} held-out samples")


@memory_kept()
def logits(model: nn.Module, data: Iterable[Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """The float32 logits (n, classes) of a model in evaluation mode, and the labels (n,), None without targets.

    Raises:
        TypeError, ValueError: as :func:`evaluate` does.
    """
    found: list[Tensor] = []
    labels: list[Tensor | None] = []
    with eval_mode(model):
        for index, inputs, targets in _batches(data):
            where = f"batch {index}"
            found.append(_logits(model, inputs, f"model, {where}").float().cpu())
            labels.append(_checked(targets, found[-1], where))
            _same_kind(labels[0] is not None, labels[-1], where)
    if not found:
        raise ValueError("data: no batches")
    known = [label for label in labels if label is not None]
    return torch.cat(found).numpy(), torch.cat(known).cpu().numpy() if known else None


def check_module(model: object, name: str) -> None:
    """Refuse what is no torch.nn.Module, and a module with a weight that has no shape; ``name`` is the argument's.

    Raises:
        TypeError: that says what to pass.
        ValueError: for a lazy module that has not seen a batch.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{name}: a TorchScript module; pass the Python module it was made from")
    if isinstance(model, nn.Module):
        for key, value in model.named_parameters():
            if isinstance(value, nn.UninitializedParameter):
                raise ValueError(f"{name}: {key} has no shape yet (lazy module); run the model once before")
        return
    if isinstance(getattr(model, "model", None), nn.Module):
        hint = "pass its .model"
    elif isinstance(model, (str, os.PathLike)):
        hint = "pass the module itself; mpcore.load(folder) or mpcore.load(folder, module) reads that of a run folder"
    elif isinstance(model, Mapping):
        hint = "build the module and give it these weights with load_state_dict"
    else:
        hint = "pass the module itself"
    raise TypeError(f"{name}: a {type(model).__name__}, wanted a torch.nn.Module; {hint}")


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; afterwards every submodule is in the mode it was in."""
    with keep_modes(*models), torch.inference_mode():
        for model in models:
            model.eval()
        yield


@contextmanager
def keep_modes(*models: nn.Module) -> Iterator[None]:
    """Whatever the block does to ``train()`` and ``eval()``, every submodule is afterwards in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Sums:
    """Running sums over the batches of one evaluation."""

    def __init__(self, name: str, *, compares: bool) -> None:
        self.name, self.compares = name, compares
        self.n, self.labelled, self.classes = 0, False, 0
        self.top1 = self.top5 = self.agree = 0
        self.nll = self.kl = 0.0

    def add(self, student: Tensor, targets: Tensor | None, teacher: Tensor | None, where: str) -> None:
        if self.n == 0:
            self.labelled, self.classes = targets is not None, student.shape[1]
        _same_kind(self.labelled, targets, where)
        self.n += len(student)
        guess, log_p = student.argmax(1), student.double().log_softmax(1)
        if targets is not None:
            self.top1 += int((guess == targets).sum())
            best = student.topk(min(5, student.shape[1]), dim=1).indices
            self.top5 += int((best == targets[:, None]).any(1).sum())
            self.nll -= float(log_p.gather(1, targets[:, None]).sum())
        if teacher is not None:
            if teacher.shape != student.shape:
                raise ValueError(
                    f"{where}: teacher's logits are {tuple(teacher.shape)}, model's {tuple(student.shape)}"
                )
            log_q = teacher.double().log_softmax(1)
            self.agree += int((guess == teacher.argmax(1)).sum())
            self.kl += float((log_q.exp() * (log_q - log_p)).sum())

    def report(self) -> EvalReport:
        if self.n == 0:
            raise ValueError("data: no batches")
        n, labelled, compares = self.n, self.labelled, self.compares
        return EvalReport(
            model=self.name,
            n=n,
            top1=self.top1 / n if labelled else None,
            top1_ci=wilson(self.top1, n) if labelled else None,
            top5=self.top5 / n if labelled and self.classes > 5 else None,
            nll=self.nll / n if labelled else None,
            agreement=self.agree / n if compares else None,
            agreement_ci=wilson(self.agree, n) if compares else None,
            kl=max(self.kl / n, 0.0) if compares else None,
        )


def _length(data: Any) -> int | None:
    return len(data) if hasattr(data, "__len__") else None


def _batches(data: Iterable[Any]) -> Iterator[tuple[int, Any, Tensor | None]]:
    if isinstance(data, (Tensor, str, bytes)) or not hasattr(data, "__iter__"):
        raise TypeError(f"data: {type(data).__name__} is not an iterable of batches; wrap one batch in a list")
    for index, batch in enumerate(data):
        yield index, *split(batch)


def _logits(model: nn.Module, inputs: Any, where: str) -> Tensor:
    output = forward(model, place(inputs, model))
    if output.ndim != 2 or 0 in output.shape:
        raise ValueError(f"{where}: logits of shape {tuple(output.shape)}, wanted (n, classes)")
    if not bool(torch.isfinite(output).all()):
        raise ValueError(f"{where}: logits hold NaN or infinity")
    return output


def _checked(targets: Tensor | None, student: Tensor, where: str) -> Tensor | None:
    """Targets as class numbers beside ``student`` (n, classes)."""
    if targets is None:
        return None
    _check_kind(targets, len(student), where)
    check_classes(targets, student.shape[1], where)
    return targets.to(student.device, torch.int64)


def check_labels(model: nn.Module, **data: Sequence[Any]) -> None:
    """Refuse batches whose labels are no classes of ``model``, before any work; the message names data and batch.

    Labels that are not one per sample do for calibration, which does not look at them; ``evaluation`` wants class
    numbers.
    """
    name, batches = next(iter(data.items()))
    inputs = split(batches[0])[0]
    with keep_modes(model), torch.no_grad():
        try:
            logits = forward(model.eval(), place(first(inputs, 2), model))
        except (RuntimeError, AssertionError, ValueError):
            logits = forward(model, place(inputs, model))  # what is wrong with the model or the inputs is said here
            raise ValueError(
                f"model: takes batches of {len(logits)} samples and none of 2, but has to be run on parts of a batch "
                "too; make it take any number of samples"
            ) from None
    classes = check_logits(logits, f"{name} batch 0").shape[1]
    for name, found in data.items():
        for index, batch in enumerate(found):
            targets = split(batch)[1]
            if targets is None:
                continue
            if name == "evaluation":
                _check_kind(targets, len(targets), f"{name}: batch {index}")
            if targets.ndim == 1:
                check_classes(targets, classes, f"{name}: batch {index}")


def _check_kind(targets: Tensor, samples: int, where: str) -> None:
    if not is_class_numbers(targets) or len(targets) != samples:
        raise ValueError(f"{where}: targets are {targets.dtype} {tuple(targets.shape)}, wanted integers ({samples},)")


def check_takes(model: nn.Module, inputs: Tensor, where: str) -> None:
    """Refuse ``inputs`` that ``model`` cannot be called with, whatever it says itself; ``where`` they come from."""
    try:
        with keep_modes(model), torch.no_grad():
            call(model.eval(), place(inputs, model))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        told = f"of shape {tuple(inputs.shape)}, {inputs.dtype} ({error})"
        raise ValueError(f"{where}: the model does not take inputs {told}") from error


def check_classes(targets: Tensor, classes: int, where: str) -> None:
    """Raise a ValueError that names a target, if one is not a class number of a model with so many ``classes``."""
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise ValueError(f"{where}: target {int(wrong[0])} is not one of the {classes} classes of the model")


def _same_kind(labelled: bool, targets: Tensor | None, where: str) -> None:
    if labelled != (targets is not None):
        raise ValueError(f"{where}: some batches have targets and some have none")
