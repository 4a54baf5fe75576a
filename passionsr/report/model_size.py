"""Table 3: parameters and operations of a model, counted from its architecture, and its real size.

The published rule, which reproduces the numbers of PassionSR's Table 3: parameters of Conv2d,
Linear and LayerNorm; multiply-adds of Conv2d and Linear without bias, plus 4 per LayerNorm element
(what the usual profiler counts); operations are twice that; a quantized part counts bits / 32 as a
whole. Attention products, the 8-bit exceptions and the scales are not in it. The real size counts
what our artifact holds. Counting runs on the meta device: shapes only, no weights and no memory.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from tabulate import tabulate
from torch import Tensor, nn

from passionsr.benchmark.config import Config
from passionsr.benchmark.paths import record_file, run_folder
from passionsr.benchmark.records import read_record
from passionsr.methods.base import load_method
from passionsr.models.family import get_family
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.artifact import WEIGHTS
from passionsr.quantization.diagnostics import model_bytes
from passionsr.quantization.modules import freeze, quantized_modules
from passionsr.quantization.spec import Scheme
from passionsr.utils.files import write_text

SIDE = 512  # output image the operations are counted for, px (the paper's)
FLOAT = "W32A32"
PASSIONSR = "passionsr.methods.passionsr:PassionSR"

# As printed in PassionSR's Table 3: (scheme, scope) -> millions of parameters, G operations.
PUBLISHED = {
    (FLOAT, ""): (949.4, 4240),
    ("W8A8", "UV"): (238, 1060),
    ("W6A6", "UV"): (178, 795),
    ("W8A8", "U"): (300, 3732),
    ("W6A6", "U"): (246, 3689),
}


@dataclass(frozen=True)
class PartCost:
    """One part by the published rule; layers: its Conv2d and Linear."""

    layers: int
    parameters: int
    macs: int


@torch.no_grad()
def part_costs(model: OneStepSR, side: int = SIDE) -> dict[str, PartCost]:
    """Part -> cost of one `side` x `side` output image; give a model on the meta device."""
    parts = model.family.parts
    macs = dict.fromkeys(parts, 0)

    def count(part: str, module: nn.Module, _: Any, out: Tensor) -> None:
        if isinstance(module, nn.LayerNorm):
            macs[part] += 4 * out.numel()
        else:
            macs[part] += out.numel() * module.get_parameter("weight")[0].numel()

    counted = (nn.Conv2d, nn.Linear, nn.LayerNorm)
    modules = {
        part: [m for m in model.get_submodule(part).modules() if isinstance(m, counted)]
        for part in parts
    }
    handles = [
        m.register_forward_hook(functools.partial(count, part))
        for part, found in modules.items()
        for m in found
    ]
    try:
        model(torch.zeros(1, 3, side, side, device=model.get_buffer("context").device))
    finally:
        for handle in handles:
            handle.remove()
    return {
        part: PartCost(
            sum(not isinstance(m, nn.LayerNorm) for m in found),
            sum(p.numel() for m in found for p in m.parameters(recurse=False)),
            macs[part],
        )
        for part, found in modules.items()
    }


def quantized_cost(
    costs: dict[str, PartCost], scheme: str, parts: Collection[str]
) -> tuple[float, float]:
    """(parameters in units of 32 bits, operations in units of 32-bit operations) of one image.

    parts: those that are quantized. Operations scale with the wider of weights and activations.
    """
    if scheme == FLOAT:
        weight = act = 32
    else:
        parsed = Scheme.parse(scheme)
        weight, act = parsed.weight_bits, parsed.act_bits
    parameters = sum(c.parameters * (weight / 32 if p in parts else 1) for p, c in costs.items())
    operations = sum(
        2 * c.macs * (max(weight, act) / 32 if p in parts else 1) for p, c in costs.items()
    )
    return parameters, operations


def packed_bytes(
    model: OneStepSR, cases: Sequence[tuple[str, str]], target: str = PASSIONSR
) -> dict[tuple[str, str], int]:
    """(scheme, scope) -> bytes of the artifact that a method would make of `model`, codes packed.

    The same count as `model_bytes` of a calibrated model: 8-bit exceptions, scales, LET's vectors,
    what stays float. Give a model on the meta device.
    """
    sizes = {}
    frozen: dict[str, OneStepSR] = {}
    for scheme, scope in cases:
        prepared, _ = load_method(target).prepare(model, Scheme.parse(scheme), scope)
        if scope in frozen:  # the same tensors, other widths; freezing takes most of the time
            pairs = zip(*map(quantized_modules, (frozen[scope], prepared)), strict=True)
            for part, other in pairs:
                part.config = other.config
        else:
            freeze(prepared)
            frozen[scope] = prepared
        sizes[scheme, scope] = model_bytes(frozen[scope])
    return sizes


def float_bytes(model: OneStepSR) -> int:
    """Bytes of the float model, the constant context left out as in `model_bytes`."""
    return sum(t.numel() * t.element_size() for t in model.parameters())


def architecture_rows(
    model: OneStepSR, costs: dict[str, PartCost], cases: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """One row per (scheme, scope), the float model first; costs: `part_costs` of the model."""
    sizes = {(FLOAT, ""): float_bytes(model), **packed_bytes(model, cases)}
    rows = []
    for scheme, scope in [(FLOAT, ""), *cases]:
        parts = model.family.scope_parts(scope) if scope else ()
        parameters, operations = quantized_cost(costs, scheme, parts)
        published = PUBLISHED.get((scheme, scope), (None, None))
        rows.append(
            {
                "bits": scheme,
                "scope": scope,
                "parameters_m": parameters / 1e6,
                "operations_g": operations / 1e9,
                "published_parameters_m": published[0],
                "published_operations_g": published[1],
                "packed_bytes": sizes[scheme, scope],
            }
        )
    return rows


def run_rows(config: Config) -> list[dict[str, Any]]:
    """Bytes of the finished runs: with packed codes, and on disk (one byte per code)."""
    rows = []
    for run in config.runs:
        folder = run_folder(config, run.run_id)
        if not record_file(config, run.run_id).is_file():
            continue
        rows.append(
            {
                "run": run.run_id,
                "packed_bytes": read_record(config, run.run_id).model_bytes,
                "file_bytes": (folder / "artifact" / WEIGHTS).stat().st_size,
            }
        )
    return rows


def write_table3(config: Config) -> None:
    """tables/table3.{csv,md,tex}, and table3_runs.csv for the measured sizes."""
    family = get_family(config.family)
    model = family.architecture(config.model)
    printed = [case for case in PUBLISHED if case[0] != FLOAT]
    cases = list(dict.fromkeys([*printed, *((r.scheme, r.scope) for r in config.runs)]))
    order = list(family.scopes)
    cases.sort(key=lambda c: (-Scheme.parse(c[0]).weight_bits, -order.index(c[1])))
    costs = part_costs(model)
    frame = pd.DataFrame(architecture_rows(model, costs, cases))
    runs = pd.DataFrame(run_rows(config), columns=["run", "packed_bytes", "file_bytes"])
    stem = config.results / "tables" / "table3"
    write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))
    write_text(stem.with_name("table3_runs.csv"), runs.to_csv(index=False, lineterminator="\n"))
    title = f"Table 3 ({config.name}): parameters, operations, bytes"
    head, body = _architecture_cells(frame)
    write_text(
        stem.with_suffix(".md"),
        f"**{title}**\n\n{tabulate(body, head, 'pipe', disable_numparse=True)}\n\n"
        f"{_legend(costs, family.parts)}\n\n"
        "Measured on the runs (the file keeps one byte per code up to 8 bits):\n\n"
        f"{_measured_sizes(runs)}\n",
    )
    tex = tabulate(body, head, "latex_booktabs", disable_numparse=True)  # escapes % and _
    write_text(stem.with_suffix(".tex"), f"% needs \\usepackage{{booktabs}}\n% {title}\n{tex}\n")


def _architecture_cells(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table of `architecture_rows`."""
    head = [
        "bits", "scope", "params, M", "ops, G", "published params, M", "published ops, G",
        "artifact, MB", "of FP32",
    ]  # fmt: skip
    whole = frame.packed_bytes.iloc[0]
    rows: Iterable[Any] = frame.itertuples()
    body = [
        [
            r.bits, r.scope or "-", f"{r.parameters_m:.2f}", f"{r.operations_g:.1f}",
            _known(r.published_parameters_m), _known(r.published_operations_g),
            f"{r.packed_bytes / 1e6:.2f}", f"{100 * r.packed_bytes / whole:.1f} %",
        ]
        for r in rows
    ]  # fmt: skip
    return head, body


def _legend(costs: dict[str, PartCost], titles: Mapping[str, str]) -> str:
    """titles: of the model's parts."""
    of_parts = "; ".join(
        f"{title} {cost.parameters / 1e6:.3f} M, {cost.macs / 1e9:.3f} GMAC, {cost.layers} layers"
        for title, cost in ((title, costs[part]) for part, title in titles.items())
    )
    return (
        f"Parameters in units of 32 bits and operations for one {SIDE} x {SIDE} image, by the "
        f"published rule (every quantized part counts bits / 32 as a whole): {of_parts}. "
        "Artifact: bytes of PassionSR's integers packed, with 8-bit exceptions, scales, LET's "
        "vectors and all that stays float. Published: PassionSR's Table 3, on SD2.1."
    )


def _measured_sizes(runs: pd.DataFrame) -> str:
    sizes: Iterable[Any] = runs.itertuples()
    rows = [[r.run, f"{r.packed_bytes / 1e6:.2f}", f"{r.file_bytes / 1e6:.2f}"] for r in sizes]
    head = ["run", "packed, MB", "file on disk, MB"]
    return tabulate(rows, head, "pipe", disable_numparse=True)


def _known(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:g}"
