"""Checkpoints in osediff.pkl's layout, random.

Made from a model's own layer names.
"""

import torch
from torch import nn

PATTERNS = (
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
    "conv",
    "conv1",
    "conv2",
    "conv_in",
    "conv_shortcut",
    "conv_out",
    "proj_out",
    "proj_in",
    "ff.net.2",
    "ff.net.0.proj",
)


def unet_lists(unet):
    """OSEDiff's rule for the UNet: names of parameters minus .weight, by block."""
    lists = {"encoder": [], "decoder": [], "others": []}
    for name, _ in unet.named_parameters():
        if "bias" in name or "norm" in name:
            continue
        module = name.removesuffix(".weight")
        if not any(module == p or module.endswith(f".{p}") for p in PATTERNS):
            continue
        if "down_blocks" in module or module == "conv_in":
            lists["encoder"].append(module)
        elif "up_blocks" in module or module == "conv_out":
            lists["decoder"].append(module)
        else:
            lists["others"].append(module)
    return lists


def vae_list(vae):
    """Every layer of the encoder and quant_conv.

    Names stand there more than once, as in the real file.
    """
    names = [
        n
        for n, m in vae.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and (n.startswith("encoder.") or n == "quant_conv")
    ]
    return names + names[:-1]


def lora(module, name, adapter, rank, generator):
    """lora_A and lora_B of one layer.

    Sized so that the update is visible but does not swamp the weight.
    """
    shape = module.weight.shape
    ones = (1,) * (len(shape) - 2)
    sizes = {"A": (rank, *shape[1:]), "B": (shape[0], rank, *ones)}
    return {
        f"{name}.lora_{side}.{adapter}.weight": 0.1 * torch.randn(*size, generator=generator)
        for side, size in sizes.items()
    }


def make_checkpoint(vae, unet, rank=4, seed=0, older=False):
    """The dictionary that torch.save writes; `older` is the layout of PassionSR's osediff.ckpt."""
    generator = torch.Generator().manual_seed(seed)
    modules = {"unet": dict(unet.named_modules()), "vae": dict(vae.named_modules())}
    lists = unet_lists(unet)
    states = {"unet": {}, "vae": {}}
    for kind, names in lists.items():
        for name in names:
            states["unet"] |= lora(modules["unet"][name], name, f"default_{kind}", rank, generator)
    for name in dict.fromkeys(vae_list(vae)):
        states["vae"] |= lora(modules["vae"][name], name, "default_encoder", rank, generator)
    for kind in ("weight", "bias"):
        size = getattr(unet.conv_in, kind).shape
        states["unet"][f"conv_in.base_layer.{kind}"] = torch.randn(size, generator=generator)
    checkpoint = {
        "rank_unet": rank,
        "rank_vae": rank,
        **{f"unet_lora_{kind}_modules": names for kind, names in lists.items()},
        "vae_lora_encoder_modules": vae_list(vae),
    }
    if older:
        checkpoint["vae_lora_decoder_modules"] = ["decoder.conv_in"]
        layer = modules["vae"]["decoder.conv_in"]
        states["vae"] |= lora(layer, "decoder.conv_in", "default_decoder", rank, generator)
    key = "{}_state_dict" if older else "state_dict_{}"
    return {**checkpoint, **{key.format(part): state for part, state in states.items()}}


def unmerged(root, state, replaced, alpha=8):
    """Hooks that add scaling * B(A(x)) beside each layer, as peft computes it.

    Replaced parameters are set.
    """
    parameters = dict(root.named_parameters())
    for name, value in replaced.items():
        parameters[name].data = value.clone()
    handles = []
    for name in {k.split(".lora_")[0] for k in state if ".lora_A." in k}:
        layer = root.get_submodule(name)
        a = next(v for k, v in state.items() if k.startswith(f"{name}.lora_A."))
        b = next(v for k, v in state.items() if k.startswith(f"{name}.lora_B."))

        def hook(layer, args, out, a=a, b=b):
            if isinstance(layer, nn.Linear):
                path = args[0] @ a.T @ b.T
            else:
                path = torch.conv2d(args[0], a, None, layer.stride, layer.padding)
                path = torch.conv2d(path, b)
            return out + alpha / a.shape[0] * path

        handles.append(layer.register_forward_hook(hook))
    return handles
