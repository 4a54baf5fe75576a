"""Model families: the registry, what files say of them, and a whole benchmark with a toy family."""

import csv
import json
import os
import re
from dataclasses import astuple, fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from toy_family import TOY

from passionsr.baselines.lsq import LSQ
from passionsr.baselines.minmax import MinMax
from passionsr.benchmark.config import load_config
from passionsr.benchmark.inputs import missing_inputs
from passionsr.benchmark.job_code import family_code
from passionsr.benchmark.jobs.calibrate import calibrate
from passionsr.benchmark.jobs.data import make_data
from passionsr.benchmark.jobs.infer import infer, reference
from passionsr.benchmark.jobs.score import probe_metrics, score
from passionsr.calibration.sub_models import sub_models
from passionsr.data.crops import Crop, make_pair, pixels_sha256
from passionsr.data.images import read_uint8, upscale
from passionsr.inference.super_resolve import super_resolve
from passionsr.methods.base import quantize_model
from passionsr.models.family import FAMILIES, family_of_folder, get_family
from passionsr.models.folder import load_model, save_model
from passionsr.models.osediff.family import OSEDIFF
from passionsr.quantization.artifact import load_quantized, save_quantized
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import match_attention
from passionsr.report.model_size import write_table3
from passionsr.report.tables import write_tables
from passionsr.utils.files import UserError

W6A6 = Scheme.parse("W6A6")


# -- the registry -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_registered_families_have_their_names(name):
    assert get_family(name).name == name


def test_a_family_is_a_name_or_an_importable_object():
    assert get_family("osediff") is OSEDIFF
    assert get_family("toy_family:TOY") is TOY


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy", "model family 'toy' is unknown: give one of osediff, or module:OBJECT"),
        ("no_such_module:TOY", "model family 'no_such_module:TOY' cannot be imported"),
        ("toy_family:NONE", "model family 'toy_family:NONE' cannot be imported"),
        ("toy_family:Toy", "model family 'toy_family:Toy' is a ABCMeta, not a Family object"),
    ],
)
def test_unknown_families(name, message):
    with pytest.raises(UserError) as error:
        get_family(name)
    assert message in str(error.value)


@pytest.mark.parametrize("family", [OSEDIFF, TOY], ids=lambda f: f.name)
def test_facts_hold_for_every_built_in_model(family):
    """Sub-models, layer sets and attentions name what exists; each layer is in one sub-model."""
    for name in family.built_in:
        model = family.architecture(name)
        for layers in family.layer_sets:
            for part, patterns in family.layer_set(layers).items():
                assert part in family.parts
                for pattern in patterns:
                    assert any(family.in_set(layers, n) for n, _ in model.named_modules()), pattern
        assert match_attention(model)
        found = [
            m for sub in sub_models(model, "UV") for root in sub.modules for m in root.modules()
        ]
        assert len(found) == len(set(found))
        layers = {m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
        assert layers <= set(found)
        assert [sub.name for sub in sub_models(model, "U")] == ["unet"]


def test_families_have_digests_of_their_own():
    """Another object of the same file is another family."""
    assert family_code("toy_family:TOY") != family_code("toy_family:OTHER")
    assert family_code("osediff") != family_code("toy_family:TOY")


FACTS = re.compile(
    r"\b(SCALE|TIMESTEP|PARTS|BUILT_IN)\b|PASSIONSR_8BIT|NATIVE_8BIT|Block2D|TransformerBlock"
    r"|UNet2DConditionModel|AutoencoderKL|[\"'](?:unet|vae)\.(?!let)"  # unet.let: a fit stage
)


def test_facts_of_a_family_are_in_its_family_alone():
    """Upscaling factor, timestep, names of layers and classes: only models/ knows them."""
    files = [p for p in Path("passionsr").rglob("*.py") if p.parts[1] != "models"]
    files += Path("baselines").glob("*.py")
    assert len(files) > 60
    found = {str(path): FACTS.findall(path.read_text()) for path in files}
    assert {path: facts for path, facts in found.items() if facts} == {}


# -- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    return TOY.make("toy-tiny")


def test_model_folder_names_its_family(toy, tiny, tmp_path):
    save_model(toy, tmp_path / "toy")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loaded = load_model(tmp_path / "toy", TOY)
    assert loaded.family is TOY
    assert torch.equal(loaded(image), toy(image))
    # What a file names is imported only if it is registered.
    with pytest.raises(UserError, match=r"family.json: model family 'toy' is not one of osediff"):
        load_model(tmp_path / "toy")
    with pytest.raises(UserError, match="made by model family 'toy', but 'osediff' is asked for"):
        load_model(tmp_path / "toy", OSEDIFF)
    save_model(tiny, tmp_path / "tiny")
    assert load_model(tmp_path / "tiny").family is OSEDIFF
    with pytest.raises(UserError, match="made by model family 'osediff', but 'toy' is asked for"):
        load_model(tmp_path / "tiny", TOY)


def test_folders_without_a_name_are_osediff(tmp_path):
    assert not Path("models/mini/family.json").exists()
    assert family_of_folder("models/mini") is OSEDIFF


def test_artifacts_name_their_family(tiny, tiny_batches, tmp_path):
    """One without a name is OSEDiff's: it was written before there were families."""
    model, _, _ = quantize_model(MinMax(), tiny, W6A6, "UV", tiny_batches)
    save_quantized(model, tmp_path, {})
    scheme = json.loads((tmp_path / "scheme.json").read_text())
    assert scheme.pop("family") == "osediff"
    (tmp_path / "scheme.json").write_text(json.dumps(scheme))
    image = tiny_batches[0].image
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path)(image), model(image))
    with pytest.raises(UserError, match="made by model family 'osediff', but 'toy' is asked for"):
        load_quantized(tmp_path, TOY)


def test_a_layer_set_that_is_not_there(toy, tiny_batches):
    with pytest.raises(UserError, match="toy has no layer set 'first_last', only passionsr"):
        LSQ(exceptions="native").prepare(toy, W6A6, "UV")


# -- a benchmark --------------------------------------------------------------------------------


def write_list(path, names):
    """A data list of 64 px crops whose hashes are those of the toy's scale."""
    crops = []
    for i, name in enumerate(names):
        crop = Crop(name, "skimage:astronaut.png", name, 64 * i, 64 * i, 64, "", "")
        hr, lr = make_pair(crop, path.parent, TOY.scale)
        assert lr.shape == (32, 32, 3)
        crops.append(replace(crop, hr_sha256=pixels_sha256(hr), lr_sha256=pixels_sha256(lr)))
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow([f.name for f in fields(Crop)])
        writer.writerows(astuple(c) for c in crops)
    return str(path)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A finished benchmark of the toy family (its configuration, in the folder it ran in)."""
    folder = tmp_path_factory.mktemp("toy")
    value = {
        "name": "toy",
        "family": "toy_family:TOY",
        "model": "toy-tiny",
        "test": write_list(folder / "test.tsv", ["face"]),
        "calibration": write_list(folder / "calibration.tsv", ["a", "b", "c", "d"]),
        "methods": str(Path("config/methods.yaml").resolve()),
        "budget": "smoke",
        "runs": [{"methods": ["minmax", "passionsr"], "schemes": ["W4A4"], "scopes": ["UV"],
                  "seeds": [0]}],
        "batch_size": 2,
        "metrics": ["psnr", "psnr_fp"],
    }  # fmt: skip
    (folder / "toy.yaml").write_text(yaml.safe_dump(value))
    config = load_config(folder / "toy.yaml")
    cache = Path(os.environ.get("PASSIONSR_CACHE", ".cache")).resolve()  # of metric weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PASSIONSR_CACHE", str(cache))
        patch.chdir(folder)
        assert missing_inputs(config) == []
        make_data(config)
        probe_metrics(config)
        reference(config)
        for run in config.runs:
            calibrate(config, run)
            infer(config, run)
        score(config, ["fp32", "bicubic", *(run.run_id for run in config.runs)])
        write_tables(config)
        write_table3(config)
    return folder, config


def test_a_benchmark_of_another_family(benchmark):
    """Every job of a benchmark, with a family that the package does not know."""
    folder, config = benchmark
    results = folder / "results" / "toy"
    lr = read_uint8(results / "data" / "test" / "LR" / "face.png")
    bicubic = read_uint8(results / "reference" / "bicubic" / "face.png")
    assert lr.shape == (32, 32, 3)
    assert (bicubic == upscale(lr, 2)).all()
    outputs = {"fp32": read_uint8(results / "reference" / "fp32" / "face.png")}
    assert (outputs["fp32"] == super_resolve(TOY.make("toy-tiny"), lr)).all()
    for run in config.runs:
        outputs[run.run_id] = read_uint8(results / "images" / run.run_id / "face.png")
    assert {image.shape for image in outputs.values()} == {(64, 64, 3)}
    assert len({image.tobytes() for image in outputs.values()}) == 3
    for name in outputs:
        (row,) = csv.DictReader((results / "scores" / name / "psnr.csv").open())
        assert 0 < float(row["value"]) < 60
    table = (results / "tables" / "table2.md").read_text()
    assert "MinMax" in table or "MaxMin" in table
    assert "PassionSR" in table
    assert "UNet 0.051 M" in (results / "tables" / "table3.md").read_text()


def test_what_the_benchmark_quantized(benchmark):
    """The family's attentions and 8-bit layers, and no others."""
    folder, config = benchmark
    for run in config.runs:
        artifact = folder / "results" / "toy" / "runs" / run.run_id / "artifact"
        scheme = json.loads((artifact / "scheme.json").read_text())
        assert scheme["family"] == "toy"
        assert len(scheme["attention"]) == 4  # of 8: two per transformer block
        assert all(name.endswith(".attn1") for name in scheme["attention"])
        eight = {name for name, layer in scheme["layers"].items() if layer["weight_bits"] == 8}
        assert eight == {"unet.conv_in", "vae.decoder.conv_out"}
        loaded = load_quantized(artifact, TOY)
        assert loaded.family is TOY
        with pytest.raises(UserError, match="'toy' is not one of osediff"):
            load_quantized(artifact)


def test_the_rule_is_the_familys(toy):
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = latent - toy.unet(latent, 500, encoder_hidden_states=toy.context).sample
        assert torch.equal(toy.denoise(latent), expected)
