"""Tables: means by hand, marks, n/a, and the published block."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from passionsr.benchmark.config import ExternalOutputs, load_config
from passionsr.data.datasets import Dataset
from passionsr.report.pages import fill
from passionsr.report.parity import compare, to_markdown
from passionsr.report.published import published_note, published_rows
from passionsr.report.rendering import (
    PublishedBlock,
    Style,
    format_rows,
    tex_escape,
    write_table,
)
from passionsr.report.scores import with_cost
from passionsr.report.statistics import adjusted, estimate
from passionsr.report.table_list import (
    COST,
    MEANS,
    TABLE2,
    TABLE4,
    ablation_rows,
    table_files,
    table_spec,
    tables_of,
)
from passionsr.report.tables import decided, differences, means, means_per_dataset
from passionsr.utils.files import UserError

SPEC = replace(table_spec("table2"), name="t", title="T")
NONE = PublishedBlock()


@pytest.fixture
def config():
    return load_config("config/test.yaml")


def scores(values):
    """values: {(method, scheme): {metric: [per image]}} -> rows as the score stage writes them."""
    return pd.DataFrame(
        [
            {
                "method": m,
                "scheme": s,
                "scope": "UV",
                "seed": 0,
                "image": i,
                "metric": k,
                "value": v,
            }
            for (m, s), metrics in values.items()
            for k, series in metrics.items()
            for i, v in enumerate(series)
        ]
    )


def example():
    base = {"ssim": [0.5, 0.5], "lpips": [0.3, 0.3], "musiq": [None, None], "psnr_fp": [30.0, 30.0]}
    return scores(
        {
            ("fp32", "W32A32"): {**base, "psnr": [30.0, 20.0]},
            ("bicubic", "W32A32"): {**base, "psnr": [10.0, 20.0]},
            ("minmax", "W8A8"): {**base, "psnr": [20.0, 22.0], "lpips": [0.4, 0.2]},
            ("passionsr", "W8A8"): {**base, "psnr": [24.0, 21.0], "lpips": [0.5, 0.4]},
            ("minmax", "W4A4"): {**base, "psnr": [10.0, 12.0]},
            ("passionsr", "W4A4"): {**base, "psnr": [10.001, 12.001]},
        }
    )


def test_rows_order_means_and_marks(config):
    table = means(config, example(), ["minmax", "passionsr"], "UV", ("bicubic", "fp32"))
    assert list(table.bits) == ["W32A32"] * 2 + ["W8A8"] * 2 + ["W4A4"] * 2
    assert list(table.method) == ["Bicubic", "FP32"] + ["MinMax", "PassionSR"] * 2
    assert list(table.psnr)[:4] == [15.0, 25.0, 21.0, 22.5]
    best = dict(zip(zip(table.bits, table.method, strict=True), table.best, strict=True))
    assert best["W32A32", "FP32"] == ""  # references are no competitors
    assert best["W8A8", "PassionSR"].split(";") == ["psnr", "ssim", "psnr_fp"]
    assert best["W8A8", "MinMax"].split(";") == ["ssim", "lpips", "psnr_fp"]  # ties are both marked
    # 11.000 and 11.001 print alike, so neither is better.
    assert "psnr" in best["W4A4", "MinMax"]
    assert "psnr" in best["W4A4", "PassionSR"]


def seeded(values):
    """{method: (seeds, images)} of PSNR at W8A8 -> score rows."""
    frames = [
        scores({(m, "W8A8"): {"psnr": list(line)}}).assign(seed=seed)
        for m, lines in values.items()
        for seed, line in enumerate(lines)
    ]
    return pd.concat(frames, ignore_index=True)


def psnr_table(config, rows, methods=("minmax", "passionsr", "lsq")):
    """The table of PSNR with its decided differences, by method."""
    config = replace(config, metrics=("psnr",))
    table = decided(config, means(config, rows, methods, "UV", ()))
    names = {config.entries[m].title: m for m in methods}
    return table.set_index(table.method.map(names))


def test_differences_are_decided_in_pairs(config):
    """A constant difference is decided however much images and seeds differ; noise is not."""
    rng = np.random.default_rng(1)
    base = 25 + 4 * rng.normal(size=(5, 12)) + rng.normal(size=(5, 1))
    table = psnr_table(
        config,
        seeded(
            {"minmax": base, "passionsr": base - 0.2, "lsq": base + rng.normal(-0.05, 1, (5, 12))}
        ),
    )
    assert table.best["minmax"] == "psnr"
    assert table.undecided["minmax"] == ""
    assert table.undecided["passionsr"] == ""
    assert table.psnr_p["passionsr"] < 1e-6
    assert table.undecided["lsq"] == "psnr"
    assert table.psnr_p["lsq"] > 0.05
    assert set(table.seeds) == {5}
    found = estimate(base)
    assert (table.psnr_lo["minmax"], table.psnr_hi["minmax"]) == (found.low, found.high)


def test_one_seed_marks_nothing(config):
    table = psnr_table(config, seeded({"minmax": [[20.0, 22.0]], "passionsr": [[24.0, 21.0]]}))
    assert set(table.undecided) == {""}
    assert table.psnr_p.isna().all()
    assert table.psnr_lo.notna().all()


def test_p_values_are_those_of_the_whole_table(config):
    """By hand: each comparison's own p, times half the number of rows, then of all of them."""
    rng = np.random.default_rng(3)
    base = rng.normal(25, 1, (5, 8))
    values = {m: base - shift + rng.normal(0, 0.5, (5, 8)) for m, shift in
              (("minmax", 0), ("passionsr", 0.4), ("lsq", 0.8))}  # fmt: skip
    table = psnr_table(config, seeded(values))
    raw = [min(1, 1.5 * estimate(values["minmax"] - values[m]).p) for m in ("passionsr", "lsq")]
    assert list(table.psnr_p[1:]) == pytest.approx(list(adjusted(raw)), rel=1e-9)


def test_rows_of_other_seeds_are_never_decided(config):
    rows = seeded({"minmax": np.full((3, 4), 30.0), "passionsr": np.full((3, 4), 10.0)})
    rows.loc[rows.method == "passionsr", "seed"] += 1
    table = psnr_table(config, rows)
    assert table.undecided["passionsr"] == "psnr"
    assert np.isnan(table.psnr_p["passionsr"])


def test_printed_cells(config):
    table = means(config, example(), ["minmax", "passionsr"], "UV", ("fp32",))
    rows = format_rows(table, config.metrics, Style("**{}**"))
    assert rows[0][:3] == ["W32A32", "FP32", "25.00"]
    assert rows[1][:3] == ["W8A8", "MinMax", "21.00"]
    undecided = table.assign(undecided=["", "psnr", *[""] * (len(table) - 2)])
    assert format_rows(undecided, config.metrics, Style("**{}**"))[1][2] == "21.00 ≈"
    assert rows[2][:3] == ["", "PassionSR", "**22.50**"]
    assert rows[1][config.metrics.index("musiq") + 2] == "n/a"


def test_published_block(config, tmp_path, monkeypatch):
    published = tmp_path / "published"
    published.mkdir()
    (published / "passionsr_table2.csv").write_text(
        "dataset,bits,method,psnr,ssim,lpips,musiq\n"
        "RealSR,W32A32,OSEDiff,25,0.7,0.3,67\nRealSR,W8A8,A,20,0.5,0.4,50\nRealSR,W8A8,B,21,0.4,0.4,40\n"
    )
    monkeypatch.setenv("PASSIONSR_SHARED", str(tmp_path))
    block = published_rows(TABLE2, config.metrics)
    assert list(block.best) == ["", "ssim;lpips;musiq", "psnr;lpips"]
    table = means_per_dataset(config, example(), ["minmax", "passionsr"], "UV", ("fp32",))
    write_table(SPEC, config, table, PublishedBlock(block, "another model"), tmp_path)
    text = (tmp_path / "t.md").read_text()
    assert text.index("PassionSR") < text.index("another model") < text.index("OSEDiff")
    frame = pd.read_csv(tmp_path / "t.csv")
    assert set(frame.source) == {"measured here", "published, another model"}
    tex = (tmp_path / "t.tex").read_text()
    assert r"\textbf{22.50}" in tex
    assert r"PSNR-Y $\uparrow$" in tex


def test_ablation_rows():
    """Parts and released behaviour are separate tables; both show MinMax and the whole methods."""
    full = load_config("config/mini-full.yaml")
    parts = ablation_rows(full, "parts")
    assert parts == [
        "minmax",
        "passionsr",
        "passionsr_no_let",
        "passionsr_no_dqc",
        "passionsr_no_lbq",
    ]
    released = ablation_rows(full, "released")
    assert released[:5] == ["minmax", "ptq4dm", "qdiffusion", "efficientdm", "passionsr"]
    switches = {n for n, e in full.entries.items() if e.ablation == "released"}
    assert set(released[5:]) == switches
    names = {spec.name for spec in tables_of(full)}
    assert {"released", "released_cost"} <= names
    names -= {spec.name for spec in tables_of(load_config("config/mini.yaml"))}
    assert names == {"released", "released_cost"}


def test_what_released_switches_cost(tmp_path):
    """Differences to the class's own row, by hand; -1 dB on every image has no spread."""
    full = replace(load_config("config/mini-full.yaml"), metrics=("psnr", "lpips"))
    values = scores(
        {
            ("passionsr", "W6A6"): {"psnr": [20.0, 22.0], "lpips": [0.4, 0.2]},
            ("official_bias", "W6A6"): {"psnr": [19.0, 21.0], "lpips": [0.5, 0.1]},
            ("official_bias", "W8A8"): {"psnr": [90.0, 90.0]},  # another bit width
            ("efficientdm", "W6A6"): {"psnr": [10.0, 10.0]},
            ("official_qalora_base", "W6A6"): {"psnr": [10.5, 10.5]},
            ("official_quant_site", "W6A6"): {"psnr": [10.5, 10.5]},  # PTQ4DM itself is missing
        }
    )
    spec = table_spec("released_cost")
    table = differences(full, values, spec).set_index("method")
    assert len(table) == sum(e.ablation == "released" for e in full.entries.values())
    bias = table.loc["quantize_bias: official"]
    assert (bias.psnr, bias.psnr_lo, bias.psnr_hi) == (-1, -1, -1)
    assert bias.lpips == pytest.approx(0)
    assert (bias.lpips_lo, bias.lpips_hi) == pytest.approx((-1.27, 1.27), abs=0.01)  # t(1) = 12.7
    assert bias.undecided == ""  # one seed decides nothing
    assert table.loc["EfficientDM, qalora_base: int"].psnr == 0.5
    assert table.loc["PTQ4DM, act_quant_site: output"].isna()[["psnr", "lpips"]].all()
    # Of a class without a plain row there is nothing to compare with.
    alone = {n: e for n, e in full.entries.items() if n != "efficientdm"}
    runs = tuple(r for r in full.runs if r.method in alone)
    table = differences(replace(full, entries=alone, runs=runs), values, spec)
    table = table.set_index("method")
    assert table.loc["EfficientDM, qalora_base: int"].isna()[["psnr", "lpips"]].all()
    write_table(replace(spec, name="t"), full, differences(full, values, spec), NONE, tmp_path)
    text = (tmp_path / "t.md").read_text()
    assert "-1.00<br><sub>-1.00 .. -1.00</sub>" in text
    assert "+0.50<br>" in text
    assert "one seed was run, which says nothing about other seeds" in text
    assert MEANS[:20] not in text


def test_cost_columns(config, tmp_path):
    """Means over a row's runs of its own scope; the published block keeps its own units."""
    table = means_per_dataset(config, example(), ["minmax", "passionsr"], "UV", ("fp32",))
    runs = [
        ("W8A8", "MinMax", "UV", 10, 100),
        ("W8A8", "MinMax", "UV", 20, 300),
        ("W8A8", "MinMax", "U", 99, 99),
    ]
    costs = pd.DataFrame(runs, columns=["bits", "method", "scope", "seconds", "mib"])
    costed = with_cost(table, costs, "UV")
    rows = format_rows(costed, ["psnr"], Style("**{}**"), cost=COST)
    assert rows[0] == ["W32A32", "FP32", "n/a", "n/a", "25.00"]
    assert rows[1] == ["W8A8", "MinMax", "15", "200", "21.00"]
    published = PublishedBlock(published_rows(TABLE4, config.metrics), "other")
    spec = replace(SPEC, cost=COST, published=TABLE4)
    write_table(spec, replace(config, metrics=("psnr",)), costed, published, tmp_path)
    text = (tmp_path / "t.md").read_text()
    assert text.index("calibration, s") < text.index("GPU time, h")
    assert "LBQ+LET+DQC | 1.07" in " ".join(text.split())
    frame = pd.read_csv(tmp_path / "t.csv")
    assert frame.hours.dropna().tolist() == [0.0, 2.66, 3.87, 1.07]  # the printed table


def test_published_block_absent_or_malformed(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PASSIONSR_SHARED", str(tmp_path))
    assert published_rows(TABLE2, config.metrics) is None
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "passionsr_table2.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected columns dataset, bits, method"):
        published_rows(TABLE2, config.metrics)


def test_published_table_is_complete(shared, config, monkeypatch):
    monkeypatch.setenv("PASSIONSR_SHARED", str(shared))
    block = published_rows(TABLE2, load_config("config/mini.yaml").metrics)
    assert len(block) == 36
    row = block[(block.dataset == "RealSR") & (block.bits == "W8A8") & (block.method == "LSQ")]
    assert float(row.psnr.iloc[0]) == 15.39  # the printed table


def test_readme_blocks():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert fill(text, "x", "new\n") == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    with pytest.raises(UserError, match="no markers <!-- y -->"):
        fill(text, "y", "")


def test_several_datasets_give_a_block_each(config, tmp_path):
    """Means are per dataset, given outputs stand with the references of their own dataset."""
    both = pd.concat(
        [
            example().assign(dataset="A"),
            example().assign(dataset="B", value=example().value + 1),
            scores({("theirs", "W32A32"): {"psnr": [40.0, 42.0]}}).assign(dataset="B"),
        ]
    )
    sets = tuple(Dataset(n, tmp_path, "*.png", "*.png") for n in "AB")
    config = replace(
        config,
        datasets=sets,
        external_outputs=(ExternalOutputs("theirs", "Theirs", "B", tmp_path),),
    )
    table = means_per_dataset(config, both, ["minmax", "passionsr"], "UV", ("fp32",))
    fp = table[table.method == "FP32"].set_index("dataset").psnr
    assert fp.to_dict() == {"A": 25.0, "B": 26.0}
    assert table[table.method == "Theirs"].set_index("dataset").psnr.to_dict() == {"B": 41.0}
    write_table(SPEC, config, table, NONE, tmp_path)
    text = (tmp_path / "t.md").read_text()
    assert text.index("*A, measured here*") < text.index("*B, measured here*")
    assert set(pd.read_csv(tmp_path / "t.csv").dataset) == {"A", "B"}


def test_parity_by_hand(tmp_path):
    """Two images: one 5e-4 dB off, one 3e-3 dB; NIQE is relative."""
    ours = scores(
        {("x", "W32A32"): {"psnr": [25.0005, 30.003], "niqe": [5.001, 6.0], "ssim": [1, 1]}}
    )
    ours["image"] = ours.image.map({0: "a", 1: "b"})
    log = tmp_path / "log.csv"
    log.write_text("image,psnr,niqe,extra\na.png,25.0,5.0,1\nb.png,30.0,6.0,1\n")
    table = compare(ours, log, ["psnr", "ssim", "niqe"]).set_index("metric")
    assert list(table.index) == ["psnr", "niqe"]
    assert table.beyond.to_dict() == {"psnr": 1, "niqe": 0}
    assert table.largest_difference["psnr"] == pytest.approx(3e-3)
    assert table.largest_difference["niqe"] == pytest.approx(2e-4)
    assert table.published["psnr"] == 27.5
    text = to_markdown(table.reset_index(), {"psnr": 25.27, "niqe": 4.355}, "Table 2")
    assert "1 of 2" in text
    assert "25.27" in text
    log.write_text("image,psnr\na.png,25.0\nc.png,30.0\n")
    with pytest.raises(UserError, match="2 images differ from ours, first: b"):
        compare(ours, log, ["psnr"])


def test_a_metric_without_a_tolerance_is_not_compared(tmp_path):
    """Nobody publishes fidelity to our float model."""
    ours = scores({("x", "W32A32"): {"psnr": [25.0], "psnr_fp": [25.0]}}).assign(image="a")
    log = tmp_path / "log.csv"
    log.write_text("image,psnr,psnr_fp\na.png,25.0,25.0\n")
    assert list(compare(ours, log, ["psnr", "psnr_fp"]).metric) == ["psnr"]


def test_tex_is_escaped():
    assert tex_escape("a_b & 5 % of {x} ≈ ↓") == (r"a\_b \& 5 \% of \{x\} $\approx$ $\downarrow$")


def test_what_is_said_about_published_numbers():
    """Only where every tested set is a full-size set of the table can values be compared."""
    assert "on the full-size test sets" in published_note(TABLE2, ["A"], {"A", "B"})
    for tested in ([], ["A_crop128"], ["A", "C"]):
        assert "never the values" in published_note(TABLE2, tested, {"A", "B"})
    assert published_note(TABLE4, ["RealSR"], {"RealSR"}).startswith("w/o LET is the paper's LBQ")


def test_files_of_the_job(config, tmp_path):
    """Three files a table, and parity where outputs made elsewhere are scored."""
    names = [path.name for path in table_files(config)]
    assert names == [
        *(f"{t}.{s}" for t in ("table2", "ablation", "table4", "unet_only")
          for s in ("csv", "md", "tex")),
        "cost.md", "summary.json",
    ]  # fmt: skip
    outputs = (ExternalOutputs("theirs", "Theirs", "B", tmp_path),)
    more = {path.name for path in table_files(replace(config, external_outputs=outputs))}
    assert more - set(names) == {"parity.csv", "parity.md"}
    full = {path.name for path in table_files(load_config("config/mini-full.yaml"))}
    assert {"released.tex", "released_cost.csv"} <= full
