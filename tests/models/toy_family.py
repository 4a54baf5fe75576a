"""A model family unlike OSEDiff; test_family.py runs a whole benchmark with it."""

from typing import ClassVar

import torch

from passionsr.models.tiny import SmallShape, small_model
from passionsr.models.vae_unet import VaeUnetFamily

SHAPE = SmallShape(
    vae_channels=(8, 16), unet_channels=(8, 16), heads=(1, 2), context=(3, 8), vae_groups=4,
    unet_groups=4,
)  # fmt: skip


class Toy(VaeUnetFamily):
    """Twice the size, x0 = z - UNet(z) at t = 500, self-attentions quantized and no others."""

    name = "toy"
    scale = 2
    timestep = 500
    built_in = ("toy-tiny",)
    layer_sets: ClassVar = {
        "passionsr": {"unet": ("unet.conv_in",), "vae": ("vae.decoder.conv_out",)}
    }

    def x0_gains(self, alpha):
        return 1.0, 1.0

    def attentions(self, model):
        return [(n, m) for n, m in super().attentions(model) if n.endswith(".attn1")]

    def make(self, name):
        with torch.random.fork_rng(devices=[]):
            return small_model(SHAPE, 1, self).eval().requires_grad_(False)


TOY = Toy()
