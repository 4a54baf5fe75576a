"""The tutorials on metrics, tables and model families, followed in copies that run a benchmark."""

import json
import re
import shutil
from collections import Counter

import pandas as pd
import pytest
from copies import SMALL, results_of, snakemake
from following import follow, fresh_copy, run
from PIL import Image

pytestmark = pytest.mark.slow


def jobs(output):
    """Rule -> how many of its jobs Snakemake ran; `all` is left out."""
    found = Counter(re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", output))
    return {rule: count for rule, count in found.items() if rule != "all"}


@pytest.fixture
def small(undisturbed, tmp_path):
    """A copy in which the small benchmark has run."""
    return shutil.copytree(undisturbed[0], tmp_path / "repo", symlinks=True)


def test_metric_is_one_entry(small):
    """What was scored stays; no model runs again; the new column is in the tables."""
    touched = follow("metric.md", small)
    assert touched == {"passionsr/metrics/registry.py": "added to", "config/small.yaml": "added to"}
    done = snakemake(small, *SMALL, cores=2)
    assert done.status == 0, done.output[-3000:]
    ran = jobs(done.output)
    assert not {"data", "reference", "calibrate", "infer", "table3"} & set(ran), ran
    table = pd.read_csv(results_of(small, SMALL) / "tables" / "table2.csv")
    values = table[table.source == "measured here"].set_index("method").ms_ssim
    assert values.between(0, 1).all()
    assert values.nunique() > 1
    assert "MS-SSIM-Y ↑" in (results_of(small, SMALL) / "tables" / "table2.md").read_text()


def test_table_is_one_entry(small):
    """Only the tables are made again, and the new one is the difference of two rows of another."""
    assert list(follow("table.md", small).values()) == ["added to"]
    done = snakemake(small, *SMALL, cores=2)
    assert done.status == 0, done.output[-3000:]
    assert set(jobs(done.output)) == {"tables"}, done.output[-2000:]
    folder = results_of(small, SMALL) / "tables"
    means = pd.read_csv(folder / "table2.csv").set_index(["bits", "method"])
    made = pd.read_csv(folder / "over_minmax.csv").set_index(["bits", "method"])
    assert list(made.index) == [("W4A4", "PassionSR")]
    for metric in ("psnr", "ssim", "psnr_fp"):
        difference = (
            means.loc[("W4A4", "PassionSR"), metric] - means.loc[("W4A4", "MinMax"), metric]
        )
        # both are sums of the same numbers in float64
        assert made.loc[("W4A4", "PassionSR"), metric] == pytest.approx(difference, abs=1e-9)
    assert "What training buys (small)" in (folder / "over_minmax.md").read_text()
    assert (folder / "over_minmax.tex").is_file()


def test_model_family_is_one_file(tmp_path):
    """A benchmark of a family that the package does not know, through the workflow."""
    folder = fresh_copy(tmp_path / "repo")
    shutil.copytree("profiles", folder / "profiles", symlinks=True)
    shutil.copy("Snakefile", folder)
    touched = follow("model-family.md", folder)
    assert touched == {"residual_family.py": "written", "config/residual.yaml": "written"}
    done = snakemake(folder, "all", "--config", "file=config/residual.yaml", cores=2)
    assert done.status == 0, done.output[-3000:]
    results = folder / "results" / "residual"
    (image,) = (results / "images" / "passionsr-W8A8-UV-s0").glob("*.png")
    sizes = [Image.open(p).size for p in (image, results / "data" / "test" / "HR" / image.name)]
    assert sizes[0] == sizes[1]
    scheme = results / "runs" / "passionsr-W8A8-UV-s0" / "artifact" / "scheme.json"
    assert json.loads(scheme.read_text())["family"] == "residual"
    table = pd.read_csv(results / "tables" / "table2.csv")
    measured = table[(table.bits == "W8A8") & (table.source == "measured here")]
    assert list(measured.method) == ["MinMax", "PassionSR"]
    assert measured.psnr.notna().all()
    # The model is the page's: its own rule, at its own timestep.
    status, output = run(
        folder, "-c",
        "import torch; from residual_family import RESIDUAL as family\n"
        "model = family.make('tiny-residual'); z = torch.ones(1, 4, 8, 8)\n"
        "expected = z - model.unet(z, 1, encoder_hidden_states=model.context).sample\n"
        "assert torch.equal(model.denoise(z), expected)",
    )  # fmt: skip
    assert status == 0, output
