"""The GPU layer without a GPU: rules, padding, reasons, honest reports, and kernels that compile."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import images, tiny_vit
from torch import nn
from torch.nn import functional

from mpcore.gpu import capability as rules
from mpcore.gpu import sparse24
from mpcore.gpu.audit import audit
from mpcore.gpu.capability import Capability, capability, why_not
from mpcore.gpu.sparse24 import clean, compress, linear, tune, unsuitable
from mpcore.gpu.table import SpeedTable
from mpcore.gpu.timing import interleave, machine
from mpcore.models.sparse_layers import SparseLinear24
from mpcore.records import SpeedRow

KERNELS = Path(__file__).resolve().parents[2] / "cuda"
CPU = torch.device("cpu")


def sparse_weight(rows: int = 32, columns: int = 64, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    groups = torch.randn(rows * columns // 4, 4, generator=torch.Generator().manual_seed(0))
    smaller = groups.abs().topk(2, dim=1, largest=False).indices
    return groups.scatter(1, smaller, 0.0).reshape(rows, columns).to(dtype)


def search_finds(monkeypatch: pytest.MonkeyPatch, *answer: int) -> None:
    binding = types.SimpleNamespace(mm_search=lambda *_: answer)
    monkeypatch.setattr(torch._C, "_cusparselt", binding, raising=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """torch's operators played by dense ones on the CPU; returns the calls they got."""
    calls: list[dict[str, Any]] = []

    def multiply(packed: torch.Tensor, dense: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append({"tokens": dense.shape[1], "stride": dense.stride(), **options})
        product = functional.linear(dense.t().float(), packed.float())
        bias = options["bias"]
        return (product if bias is None else product + bias.float()).to(packed.dtype)

    monkeypatch.setattr(sparse24, "why_not", lambda device: "")
    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight.clone())
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    search_finds(monkeypatch, 3, 2, 1, 7)
    return calls


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((32, 64), torch.float16, ""),
        ((16, 16), torch.bfloat16, ""),
        ((32, 64), torch.float32, "1:2, not 2:4"),
        ((32, 64), torch.int8, "torch.int8 is not"),
        ((32, 72), torch.float16, "72 columns is not a multiple of 16"),
        ((10, 64), torch.float16, "10 rows is not a multiple of 16"),
        ((0, 64), torch.float16, "0 rows"),
        ((32, 64, 1), torch.float16, "is not (rows, columns)"),
    ],
)
def test_the_rules_of_the_kernels_are_checked_in_words(shape: Any, dtype: torch.dtype, reason: str) -> None:
    found = unsuitable(shape, dtype)
    assert (reason in found) if reason else not found


def test_the_rules_are_torchs_own() -> None:
    constraints = torch.sparse.SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS
    for dtype, rule in rules.RULES.items():
        wanted = constraints[dtype]
        assert (rule.rows, rule.columns) == (wanted.sparse_min_rows, wanted.sparse_min_cols)
        assert rule.tokens == max(wanted.dense_min_rows, wanted.dense_min_cols)


def test_minus_zero_becomes_plus_zero_and_strides_become_contiguous() -> None:
    weight = sparse_weight()
    weight[weight == 0] = -0.0
    strided = torch.stack([weight, weight], dim=1)[:, 0]
    cleaned = clean(strided)
    assert cleaned.is_contiguous()
    assert torch.equal(cleaned, weight)
    assert not torch.signbit(cleaned[cleaned == 0]).any()


def test_a_weight_that_is_not_24_is_refused_with_its_place() -> None:
    weight = sparse_weight()
    weight[3, 8:12] = 1.0
    with pytest.raises(ValueError, match="row 3, group 2 keeps 4 of 4"):
        clean(weight)


@given(tokens=st.integers(1, 40))
def test_tokens_are_padded_for_the_kernel_and_cut_off_again(tokens: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = fake.__wrapped__(patch)  # type: ignore[attr-defined]
        weight, bias = sparse_weight(), torch.randn(32, generator=torch.Generator().manual_seed(0)).half()
        x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(tokens)).half()
        y = linear(x, compress(weight), bias)
    assert calls[0]["tokens"] % 8 == 0
    assert calls[0]["tokens"] - tokens < 8
    assert calls[0]["stride"] == (1, 64)
    expected = functional.linear(x.float(), weight.float(), bias.float()).half()  # rounds by up to .03 beyond 64
    assert torch.allclose(y.float(), expected.float(), atol=2e-2)


def test_leading_axes_and_the_found_algorithm_are_passed_on(fake: list[dict[str, Any]]) -> None:
    weight = sparse_weight()
    x = torch.randn(2, 5, 64).half()
    packed = tune(compress(weight), x)
    assert packed.algorithm == (3, 2, 1)
    assert linear(x, packed).shape == (2, 5, 32)
    assert (fake[0]["alg_id"], fake[0]["split_k"], fake[0]["split_k_mode"]) == (3, 2, 1)
    assert fake[0]["transpose_result"] is True
    with pytest.raises(ValueError, match=r"wanted torch\.float16 \(\.\.\., 64\)"):
        linear(x.float(), packed)


@pytest.mark.usefixtures("fake")
def test_the_state_dict_of_a_24_layer_is_that_of_the_dense_layer() -> None:
    dense, x = nn.Linear(64, 32).half(), torch.randn(8, 64).half()
    dense.weight.data = sparse_weight()
    layer = SparseLinear24(dense, x)
    stored = layer.state_dict()
    assert list(stored) == list(dense.state_dict())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in dense.state_dict().items())
    layer.load_state_dict({"weight": 2 * stored["weight"], "bias": 0 * stored["bias"]})
    assert layer.weight.algorithm == (3, 2, 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), 2 * functional.linear(x, dense.weight))
    with pytest.raises(RuntimeError, match="weight: row 0, group 0 keeps 4 of 4"):
        layer.load_state_dict({**stored, "weight": torch.ones(32, 64)})


def test_a_search_that_returns_another_order_is_noticed(fake: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    search_finds(monkeypatch, 9, 2, 1, 7)
    with pytest.raises(RuntimeError, match="algorithm 9 of 7"):
        tune(compress(sparse_weight()), torch.randn(8, 64).half())


def test_on_a_cpu_compress_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="need a CUDA device, this is cpu"):
        compress(sparse_weight())


def test_capability_is_a_record_and_has_a_reason_where_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = capability()
    assert (found.device, found.compute_capability, found.reason) == (None, None, "no CUDA device")
    assert Capability.from_json(found.to_json()) == found


def test_an_old_gpu_is_refused_and_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Old")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 801)
    assert "7.5 has no sparse tensor cores" in why_not(torch.device("cuda"))
    assert (capability().device, capability().cusparselt) == ("Old", "0.8.1")


def test_an_audit_without_measurement_says_so_and_gives_no_figure() -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.copy_(sparse_weight(64, 32, torch.float32))
    report = audit(model, images(2, channels=1, size=8), dry=True)
    rows = {row["layer"]: row for row in report.rows()}
    assert all(row[key] is None for row in rows.values() for key in ("dense_s", "sparse_s", "gain"))
    assert rows["blocks.0.mlp.fc1"]["eligible"]
    assert rows["blocks.0.mlp.fc1"]["reason"] == "not measured: dry run"
    assert "not 2:4" in rows["blocks.1.mlp.fc1"]["reason"]
    assert "10 rows" in rows["head"]["reason"]
    with pytest.raises(ValueError, match="example_input"):
        audit(model, dry=True)


class Branching(torch.nn.Module):
    """What a run without numbers cannot follow: a plain tensor, a branch on values, a layer called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.shift = torch.nn.Linear(64, 32), torch.ones(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(input=x + self.shift) if x.sum() > -1e9 else x


def test_an_audit_runs_the_model_itself_and_leaves_it_as_it_is() -> None:
    model = Branching().train()
    model.fc.weight.data.copy_(sparse_weight(32, 64))
    rows = audit(model, torch.randn(3, 64), dry=True).rows()
    assert rows[0]["reason"] == "not measured: dry run"
    assert model.training
    assert not model.fc._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_audit_names_an_empty_weight() -> None:
    report = audit(torch.nn.Sequential(torch.nn.Linear(0, 16)), torch.zeros(2, 0), dry=True)
    assert report.rows()[0]["reason"] == "0 columns is not a multiple of 16"


def test_the_standard_audit_knows_vit_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = audit()
    assert [row["layer"] for row in report.rows()] == ["ViT-B qkv", "ViT-B proj", "ViT-B fc1", "ViT-B fc2"]
    assert {row["reason"] for row in report.rows()} == {"not measured: no CUDA device"}
    assert report.machine == "no GPU"


def test_the_html_table_escapes_and_dashes() -> None:
    row = SpeedRow("a<b>", True, "dense", 2e-3, None, None, "not measured: R&D")
    page = SpeedTable("m", 1, "b", (row,)).to_html()
    assert "a&lt;b&gt;" in page
    assert "R&amp;D" in page
    assert "<td>2</td><td>–</td><td>–</td>" in page


def test_functions_take_turns_and_each_runs_as_often_as_the_others() -> None:
    runs: list[str] = []
    timings = interleave([lambda: runs.append("a"), lambda: runs.append("b")], device=CPU, repeats=4, warmup=1)
    assert "".join(runs) == "ab" + "abba" * 2
    assert all(timing.repeats == 4 and timing.low <= timing.median <= timing.high for timing in timings)
    assert machine(CPU)
    with pytest.raises(ValueError, match="0 functions"):
        interleave([], device=CPU)


def nvrtc() -> Any:
    return pytest.importorskip(
        "cuda.bindings.nvrtc", reason="cuda-bindings (a dependency of torch's Linux wheels) is absent"
    )


def cuda_headers() -> Path:
    found = list(Path(torch.__file__).parents[1].glob("nvidia/*/include/cuda_fp16.h"))
    if not found:
        pytest.skip("the CUDA headers that torch's Linux wheels bring are absent")
    return found[0].parent


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_kernels_compile_without_a_gpu(architecture: str) -> None:
    compiler, source = nvrtc(), (KERNELS / "nm_prune.cu").read_bytes()
    _, program = compiler.nvrtcCreateProgram(source, b"nm_prune.cu", 0, [], [])
    options = [f"--gpu-architecture={architecture}".encode(), f"--include-path={cuda_headers()}".encode()]
    (status,) = compiler.nvrtcCompileProgram(program, len(options), options)
    _, size = compiler.nvrtcGetProgramLogSize(program)
    log = b" " * (size + 1)  # never b" " alone, which Python shares and NVRTC would overwrite for everyone
    compiler.nvrtcGetProgramLog(program, log)
    assert status == compiler.nvrtcResult.NVRTC_SUCCESS, log.decode()
    _, size = compiler.nvrtcGetCUBINSize(program)
    cubin = b" " * size
    compiler.nvrtcGetCUBIN(program, cubin)
    kernels = set(re.findall(rb"mpcore_nm_prune_(?:f32|f16|bf16)", cubin))
    assert kernels == {b"mpcore_nm_prune_f32", b"mpcore_nm_prune_f16", b"mpcore_nm_prune_bf16"}
