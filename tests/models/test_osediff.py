"""SD2.1-base + osediff.pkl -> a model folder: files of the true layout, tiny.

Counts at full size.
"""

import copy
import os
import pickle
import shutil

import pytest
import torch
from archive_files import QUOTA_PAGE
from osediff_files import make_checkpoint, unet_lists, unmerged, vae_list
from vectors import load, relative

from passionsr.cli import main
from passionsr.models.folder import load_model, save_model
from passionsr.models.osediff import sd21
from passionsr.models.osediff.importer import (
    PartUpdate,
    import_osediff,
    lora_delta,
    merge,
    read_checkpoint,
    read_context,
)
from passionsr.models.osediff.sd21 import (
    HUB_BASES,
    LOCAL_HINT,
    check_empty_context,
    embed_prompt,
    find_base,
    sd21_model,
)
from passionsr.utils.files import UserError, sha256_file


@pytest.fixture
def place(tmp_path, tiny):
    """A base folder, a checkpoint and a context file of the tiny architecture."""
    save_model(tiny, tmp_path / "base")
    (tmp_path / "base" / "manifest.json").unlink()  # a diffusers folder has none
    torch.save(make_checkpoint(tiny.vae, tiny.unet), tmp_path / "osediff.pkl")
    torch.save(tiny.context.clone(), tmp_path / "context.pt")
    return tmp_path


def command(place, *more, checkpoint="osediff.pkl"):
    return [
        "import-osediff", str(place / "model"), "--base", str(place / "base"),
        "--checkpoint", str(place / checkpoint), "--context", str(place / "context.pt"), *more,
    ]  # fmt: skip


IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("older", [False, True], ids=["released", "older"])
def test_merged_equals_unmerged(older, place, tiny):
    """The official merge, to its own 1e-4; the update itself is far larger."""
    checkpoint = make_checkpoint(tiny.vae, tiny.unet, older=older)
    torch.save(checkpoint, place / "osediff.pkl")
    assert main(command(place)) == 0
    model = load_model(place / "model")
    expected = copy.deepcopy(tiny)
    parts = (
        ("unet_state_dict", "vae_state_dict") if older else ("state_dict_unet", "state_dict_vae")
    )
    unet, vae = (checkpoint[p] for p in parts)
    base = {k.replace(".base_layer", ""): v for k, v in unet.items() if "base_layer" in k}
    unmerged(expected.unet, unet, base)
    unmerged(expected.vae, {k: v for k, v in vae.items() if "default_decoder" not in k}, {})
    with torch.no_grad():
        latent, reference = model.encode(IMAGE), expected.encode(IMAGE)
        assert (latent - reference).abs().max() < 1e-4
        assert (reference - tiny.encode(IMAGE)).abs().max() > 0.05
        eps, reference = model.predict_eps(latent), expected.predict_eps(latent)
        assert (eps - reference).abs().max() < 1e-4
        assert (reference - tiny.predict_eps(latent)).abs().max() > 0.05
        # the decoder is as it was, to the bit
        assert torch.equal(model.decode(latent), tiny.decode(latent))


@pytest.mark.parametrize("case", ["lora_conv", "lora_conv_s2", "lora_linear"])
def test_lora_vectors(case, shared):
    """What peft merged, with its tolerance of 1e-6."""
    v = load(shared, case)
    merged = v["W"] + lora_delta(v["A"], v["B"], float(v["lora_alpha"]))
    assert relative(merged, v["W_merged"]) < 1e-6
    if v["is_conv"]:
        size = {"stride": int(v["stride"]), "padding": int(v["padding"])}
        out = torch.conv2d(v["x"], merged, v["b"], **size)
    else:
        out = torch.nn.functional.linear(v["x"], merged, v["b"])
    assert relative(out, v["y_unmerged"]) < 1e-5


def test_full_size_counts_and_merge(tmp_path):
    """258 + 32 layers at true sizes.

    The file is real, the base's weights are meta tensors (names and shapes only).
    """
    model = sd21_model()
    lists = unet_lists(model.unet)
    assert [len(lists[k]) for k in ("encoder", "decoder", "others")] == [94, 148, 16]
    names = vae_list(model.vae)
    assert len(set(names)) == 32
    assert len(names) > 32
    torch.save(make_checkpoint(model.vae, model.unet), tmp_path / "osediff.pkl")
    updates = read_checkpoint(tmp_path / "osediff.pkl")
    for part, count in (("unet", 258), ("vae", 32)):
        update = updates[part]
        on_meta = PartUpdate(
            update.rank,
            {k: tuple(t.to("meta") for t in pair) for k, pair in update.lora.items()},
            {k: t.to("meta") for k, t in update.replaced.items()},
        )
        assert merge(model.get_submodule(part), on_meta) == count
    assert sum(p.numel() for p in model.unet.parameters()) == 865_910_724
    assert sum(p.numel() for p in model.vae.parameters()) == 83_653_863


class Attack:
    """Unpickled without care it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def changed(change):
    """A step that edits the checkpoint's dictionary."""

    def prepare(place):
        value = torch.load(place / "osediff.pkl", weights_only=True)
        change(value)
        torch.save(value, place / "osediff.pkl")

    return prepare


def first(state, part):
    return next(k for k in state if part in k)


def truncated(place):
    data = (place / "osediff.pkl").read_bytes()
    (place / "osediff.pkl").write_bytes(data[: len(data) // 2])


def malicious(place):
    torch.save({"rank_unet": Attack(place / "owned")}, place / "osediff.pkl")


def plain_malicious(place):
    (place / "osediff.pkl").write_bytes(pickle.dumps(Attack(place / "owned"), protocol=2))


def damaged_base(place):
    path = place / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def page(*names):
    """A step that puts an error page in a file's place."""
    return lambda place: place.joinpath(*names).write_bytes(QUOTA_PAGE)


def foreign_base(place):
    from safetensors.torch import load_file, save_file

    path = place / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["quant_conv.bias"]
    save_file(state, path)


def v_prediction(place):
    path = place / "base" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("epsilon", "v_prediction"))


NOTHING = lambda place: None  # noqa: E731
CASES = {
    "missing": (lambda p: (p / "osediff.pkl").unlink(), [], "osediff.pkl: file not found"),
    "truncated": (truncated, [], "not a checkpoint, truncated or damaged"),
    "not a pickle": (
        lambda p: (p / "osediff.pkl").write_bytes(b"hello" * 100),
        [],
        "not a checkpoint, truncated or damaged",
    ),
    "malicious": (malicious, [], "refused, it asks for posix.system"),
    "malicious, no zip": (plain_malicious, [], "refused, it asks for posix.system"),
    "wrong hash": (NOTHING, ["--sha256", "0" * 64], "expected 0000"),
    "not a dictionary": (
        lambda p: torch.save([1], p / "osediff.pkl"),
        [],
        "expected a dictionary of names",
    ),
    "foreign layout": (
        lambda p: torch.save({"state_dict": {}}, p / "osediff.pkl"),
        [],
        "not OSEDiff's layout, rank_unet",
    ),
    "no state": (
        changed(lambda c: c.pop("state_dict_vae")),
        [],
        "state_dict_vae or vae_state_dict is missing",
    ),
    "unused tensor": (
        changed(lambda c: c["unet_lora_others_modules"].pop()),
        [],
        "belongs to no listed module",
    ),
    "listed without tensors": (
        changed(lambda c: c["state_dict_unet"].pop(first(c["state_dict_unet"], "lora_B"))),
        [],
        "has no complete lora_A / lora_B",
    ),
    "unknown module": (
        changed(
            lambda c: (
                c["unet_lora_others_modules"].append("mid_block.nothing"),
                c["state_dict_unet"].update(
                    {
                        f"mid_block.nothing.lora_{s}.default_others.weight": torch.zeros(4, 4)
                        for s in "AB"
                    }
                ),
            )
        ),
        [],
        "the base model has no layer mid_block.nothing",
    ),
    "no conv_in": (
        changed(lambda c: c["state_dict_unet"].pop("conv_in.base_layer.bias")),
        [],
        "conv_in.base_layer.weight or .bias is missing",
    ),
    "wrong rank": (changed(lambda c: c.update(rank_vae=8)), [], "do not fit a weight of"),
    "NaN": (
        changed(
            lambda c: c["state_dict_vae"][first(c["state_dict_vae"], "lora_A")].fill_(float("nan"))
        ),
        [],
        "holds NaN or infinite values",
    ),
    "no base": (
        lambda p: shutil.rmtree(p / "base"),
        [],
        "base: folder not found; give --base a local folder",
    ),
    "base without unet": (
        lambda p: shutil.rmtree(p / "base" / "unet"),
        [],
        "config.json is missing",
    ),
    "damaged base": (damaged_base, [], "unet: cannot be loaded"),
    "page as checkpoint": (
        page("osediff.pkl"),
        [],
        "not a checkpoint, truncated or damaged (it is an HTML page ('Quota exceeded'))",
    ),
    "page as weights": (
        page("base", "vae", "diffusion_pytorch_model.safetensors"),
        [],
        "vae: cannot be loaded (diffusion_pytorch_model.safetensors is an HTML page",
    ),
    "page as context": (
        page("context.pt"),
        [],
        "context.pt: not a checkpoint, truncated or damaged (it is an HTML page",
    ),
    "page as schedule": (
        page("base", "scheduler", "scheduler_config.json"),
        [],
        "base/scheduler: cannot be loaded (",
    ),
    "foreign base": (
        foreign_base,
        [],
        "1 tensors are missing and 0 are unknown (first: quant_conv.bias)",
    ),
    "v prediction": (v_prediction, [], "prediction_type is v_prediction, expected epsilon"),
    "wrong context": (
        lambda p: torch.save(torch.zeros(1, 5, 9), p / "context.pt"),
        [],
        "context has shape [1, 5, 9], expected [1, tokens, 8]",
    ),
    "no prompt branch": (NOTHING, ["--entry", "osediff"], "the prompt branch is absent"),
    "output exists": (lambda p: (p / "model").mkdir(), [], "model is there already"),
}


@pytest.mark.parametrize("case", CASES, ids=[k.replace(" ", "-") for k in CASES])
def test_bad_input_is_refused_in_one_line(case, place, capsys):
    prepare, more, message = CASES[case]
    prepare(place)
    before = sorted(place.rglob("*"))
    assert main(command(place, *more)) == 2
    errors = [e for e in capsys.readouterr().err.strip().splitlines() if e.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(place.rglob("*")) == before  # nothing half-written, no attack succeeded


def test_good_input(place, capsys):
    """So that the cases above fail for their stated reason.

    And the folder is an ordinary model folder.
    """
    digest = sha256_file(place / "osediff.pkl")
    assert main(command(place, "--sha256", digest)) == 0
    assert torch.equal(load_model(place / "model").context, read_context(place / "context.pt"))
    assert not list(place.glob(".tmp-*"))


def test_half_precision_checkpoint(place, tiny):
    """Half-precision tensors are admitted: the sum is taken in float32."""
    value = make_checkpoint(tiny.vae, tiny.unet)
    for state in ("state_dict_unet", "state_dict_vae"):
        value[state] = {k: v.half() for k, v in value[state].items()}
    torch.save(value, place / "osediff.pkl")
    update = read_checkpoint(place / "osediff.pkl")["unet"]
    unet = copy.deepcopy(tiny.unet)
    merge(unet, update)
    assert unet.conv_in.weight.dtype == torch.float32


def test_nothing_changes_when_a_module_does_not_fit(place, tiny):
    update = read_checkpoint(place / "osediff.pkl")["unet"]
    unet = copy.deepcopy(tiny.unet)
    update.lora[("mid_block.resnets.0.conv9", "default_others")] = next(iter(update.lora.values()))
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    with pytest.raises(UserError, match="no layer mid_block"):
        merge(unet, update)
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())


# -- context and prompts --------------------------------------------------------------------------


def test_published_empty_context(shared):
    """The published file passes; it was saved on a GPU. Any other tensor of its shape does not."""
    path = shared / "published" / "empty_context_embedding.pt"
    context = check_empty_context(read_context(path), 1024, "file")
    assert context.shape == (1, 77, 1024)
    assert context.dtype == torch.float32
    check_empty_context(context.half(), 1024, "half precision")
    swapped = context.flip(1)  # same mean and standard deviation
    for wrong in (swapped, context[:, :76], 1.01 * context, torch.randn(1, 77, 1024)):
        with pytest.raises(UserError, match=r"not SD2\.1's embedding of the empty prompt"):
            check_empty_context(wrong, 1024, "file")


def text_branch(folder):
    """A tiny CLIP text encoder and tokenizer of the tiny model's context width."""
    import json

    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=5,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    vocabulary = ["<|startoftext|>", "<|endoftext|>", "c", "a", "t", "c</w>", "a</w>", "t</w>"]
    (tokenizer / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    names = {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    }  # fmt: skip
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 5, **names}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))


def test_prompted_entry(place, tmp_path, capsys):
    """Context from the text encoder; a prompt changes the output.

    Without the branch one line says what to do.
    """
    import numpy as np

    from passionsr.data.images import read_uint8, write_uint8

    text_branch(place / "base")
    card = import_osediff(
        place / "model", place / "osediff.pkl", str(place / "base"), entry="osediff"
    )
    assert card["context"].endswith("text_encoder")
    model = load_model(place / "model")
    assert torch.equal(model.context, embed_prompt(place / "model", ""))
    write_uint8(tmp_path / "lr.png", np.full((8, 8, 3), 90, np.uint8))
    upscale = [
        "upscale",
        str(tmp_path / "lr.png"),
        str(tmp_path / "sr.png"),
        "--model",
        str(place / "model"),
    ]
    results = []
    for prompt in ([], ["--prompt", ""], ["--prompt", "cat"]):
        assert main([*upscale, *prompt]) == 0
        results.append(read_uint8(tmp_path / "sr.png"))
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()
    import_osediff(place / "fp", place / "osediff.pkl", str(place / "base"))
    capsys.readouterr()
    assert main([*upscale[:-1], str(place / "fp"), "--prompt", "cat"]) == 2
    assert "no prompt branch here" in capsys.readouterr().err


def test_context_is_asked_for_where_nothing_gives_it(place):
    with pytest.raises(UserError, match="give --context"):
        import_osediff(place / "model", place / "osediff.pkl", str(place / "base"))


# -- hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Sets what is wrong with the hub, None for nothing, and asks the public one."""
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(sd21, "stay_offline_without_hub", lambda: None)
    return lambda problem: monkeypatch.setattr(sd21, "hub_problem", lambda: problem)


def test_hub_falls_back_to_mirrors(monkeypatch, tmp_path, hub):
    asked = []
    hub(None)

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision))
        if len(asked) < 3:
            raise ConnectionError("no route\nsecond line")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_base(None) == tmp_path
    assert asked == list(HUB_BASES)
    assert all(len(commit) == 40 for _, commit in HUB_BASES)


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch, tmp_path, hub):
    """A snapshot in the cache is taken; without one, one line says what is wrong with the hub."""
    asked = []

    def snapshot(name, **options):
        asked.append(options["local_files_only"])
        if len(asked) < 3:
            raise FileNotFoundError("not in the cache")
        return str(tmp_path)

    hub("HF_HUB_OFFLINE is set")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_base(None) == tmp_path
    assert asked == [True] * 3
    asked[:] = []
    with pytest.raises(UserError) as error:
        find_base("owner/name", "0" * 40)
    assert str(error.value) == (
        "Stable Diffusion 2.1-base cannot be fetched (HF_HUB_OFFLINE is set, and the cache has "
        f"none of owner/name); {LOCAL_HINT}"
    )


def test_the_users_endpoint_is_asked(monkeypatch, tmp_path, hub):
    asked = []

    def snapshot(name, **options):
        asked.append(options.get("endpoint"))
        return str(tmp_path)

    hub(None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example/")
    assert find_base(None) == tmp_path
    assert asked == ["http://mirror.example"]


@pytest.mark.parametrize("endpoint", ["mirror.example", "https://"])
def test_an_endpoint_that_is_no_address(monkeypatch, endpoint):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UserError, match=f"HF_ENDPOINT is '{endpoint}', expected the address"):
        find_base(None)


def test_unreachable_hub_names_the_local_option(monkeypatch, hub):
    def snapshot(name, **_):
        raise ConnectionError(f"{name} unreachable\nmore")

    hub(None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(UserError, match="--base a local folder") as error:
        find_base(None)
    assert "\n" not in str(error.value)
    assert all(name in str(error.value) for name, _ in HUB_BASES)
    with pytest.raises(UserError, match="give --revision"):
        find_base("someone/else")


# -- posterior ------------------------------------------------------------------------------------


def test_posterior_sample(tiny):
    """Mean by default; a sample is mean + std * the same noise for every image of a size."""
    model = copy.deepcopy(tiny)
    with torch.no_grad():
        mean, std = model.encode_distribution(IMAGE)
        assert torch.equal(model.encode(IMAGE), mean)
        model.posterior = "sample"
        sample = model.encode(IMAGE)
        assert torch.equal(model.encode(IMAGE), sample)
        noise = (sample - mean) / std
        expected = torch.randn(mean.shape, generator=torch.Generator().manual_seed(42))
        torch.testing.assert_close(noise, expected, rtol=1e-3, atol=1e-3)  # a quotient of float32
