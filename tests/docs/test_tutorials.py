"""The tutorial on methods, followed to the letter in a copy, whose own tests judge."""

import re

import pytest
from copies import ROOT
from following import BLOCK, follow, fresh_copy, run


@pytest.fixture(scope="module")
def with_method(tmp_path_factory):
    """(copy with the tutorial's method, what the tutorial touched)."""
    folder = fresh_copy(tmp_path_factory.mktemp("tutorial") / "repo")
    return folder, follow("method.md", folder)


def test_method_is_one_file_and_one_line(with_method):
    folder, touched = with_method
    assert touched == {"baselines/quantile.py": "written", "config/methods.yaml": "added to"}
    before = (ROOT / "config" / "methods.yaml").read_text().splitlines()
    after = (folder / "config" / "methods.yaml").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1


def test_method_passes_the_contract(with_method):
    folder, _ = with_method
    status, output = run(
        folder, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "tests/methods/test_methods.py", "-k", "test_contract and quantile",
    )  # fmt: skip
    assert status == 0, output[-3000:]
    # two bit widths times two scopes
    assert re.search(r"^4 passed", output, re.M), output[-500:]


def test_method_clips_what_it_says(with_method):
    """The option reaches the ranges: at a share of 0 they are MinMax's, above it narrower."""
    folder, _ = with_method
    code = (
        "import torch\n"
        "from passionsr.calibration.batches import make_batches\n"
        "from passionsr.methods.base import load_method, quantize_model\n"
        "from passionsr.models.tiny import tiny_model\n"
        "from passionsr.quantization.spec import Scheme\n"
        "torch.manual_seed(0)\n"
        "tiny = tiny_model()\n"
        "batches = make_batches(tiny, [torch.rand(1, 3, 32, 32) for _ in range(2)], 2, 0)\n"
        "def widths(target, **options):\n"
        "    method = load_method(target, options)\n"
        "    model, _, _ = quantize_model(method, tiny, Scheme.parse('W6A6'), 'UV', batches)\n"
        "    state = model.state_dict()\n"
        "    names = [n for n in state if n.endswith('act_quantizer.upper')]\n"
        # 1 % of a constant embedding with fewer than 100 values is nothing
        "    names = [n for n in names if not any(s in n for s in ('time_emb', '.attn2.to_'))]\n"
        "    return torch.stack([state[n] - state[n[:-5] + 'lower'] for n in names])\n"
        "target = 'passionsr.baselines.quantile:Quantile'\n"
        "minmax = widths('passionsr.baselines.minmax:MinMax')\n"
        "assert torch.equal(widths(target, clip=0.0), minmax)\n"
        "assert (widths(target, clip=0.01) < minmax).all()\n"
    )
    status, output = run(folder, "-c", code)
    assert status == 0, output[-3000:]


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs" / "extend").glob("*.md")))
def test_paths_in_tutorials_exist(page):
    """Every file that a tutorial points to is there, or is one that the tutorial writes."""
    text = (ROOT / "docs" / "extend" / page).read_text()
    written = {title for title, _ in BLOCK.findall(text)}
    pattern = r"`((?:passionsr|baselines|config|tests|workflow|models)/[\w./-]+\.(?:py|yaml|md))`"
    missing = [n for n in re.findall(pattern, text) if n not in written and not (ROOT / n).exists()]
    assert not missing
