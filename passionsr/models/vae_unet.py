"""What families of a diffusers AutoencoderKL and UNet2DConditionModel share.

A model folder holds vae/, unet/, context.safetensors, and scheduler/ where the x0 rule needs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from passionsr.models.family import Family, SubModelSpec
from passionsr.models.loading import reading_model
from passionsr.utils.contents import wrong_content
from passionsr.utils.files import UserError
from passionsr.utils.foreign_files import is_foreign

if TYPE_CHECKING:
    from torch import nn

    from passionsr.models.one_step import OneStepSR

CONTEXT = "context.safetensors"
WEIGHTS = "diffusion_pytorch_model"  # diffusers' name of a network's weights
# Where diffusers has the classes that this package uses.
CLASSES = (
    "diffusers.models.attention_processor",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddpm",
)
# Sub-folders of a model folder whose files belong to the model, where they are there.
FOLDERS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


class VaeUnetFamily(Family):
    """VAE encoder -> UNet -> VAE decoder, the diffusers classes, with a constant context.

    A family that inherits this gives `name`, `scale`, `timestep`, `layer_sets`, `x0_gains`, and
    `make` for its built-in models.
    """

    parts: ClassVar[Mapping[str, str]] = {"unet": "UNet", "vae": "VAE"}
    scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"U": ("unet",), "UV": ("vae", "unet")}
    sub_models = (
        SubModelSpec("encoder", ("vae.encoder", "vae.quant_conv"), "encode", "image", "latent"),
        SubModelSpec("unet", ("unet",), "denoise", "latent", "x0"),
        SubModelSpec("decoder", ("vae.post_quant_conv", "vae.decoder"), "decode", "x0", "output"),
    )
    block_types = ("ResnetBlock2D", "BasicTransformerBlock")

    def attentions(self, model: OneStepSR) -> list[tuple[str, nn.Module]]:
        """Every attention of the UNet; the VAE's attention products stay float."""
        from diffusers.models.attention_processor import Attention

        named = model.unet.named_modules(prefix="unet")
        return [(name, module) for name, module in named if isinstance(module, Attention)]

    def skip_splits(self, model: OneStepSR) -> dict[str, int]:
        """The shortcut convolution of every ResNet of the up blocks (Q-Diffusion's split)."""
        unet: Any = model.unet
        channels = unet.mid_block.resnets[-1].conv2.weight.shape[0]
        splits = {}
        for i, block in enumerate(unet.up_blocks):
            for j, resnet in enumerate(block.resnets):
                splits[f"unet.up_blocks.{i}.resnets.{j}.conv_shortcut"] = channels
                channels = resnet.conv2.weight.shape[0]
        return splits

    def import_networks(self) -> None:
        """The diffusers classes, see `passionsr.models.light_import`."""
        from passionsr.models.light_import import import_lightly

        import_lightly(CLASSES)

    def make(self, name: str) -> OneStepSR:
        """No built-in models; a family that names some in `built_in` makes them here."""
        raise UserError(f"model family {self.name} has no built-in model {name!r}")

    def load(self, folder: Path) -> OneStepSR:
        """vae/, unet/ and context.safetensors in float32."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from safetensors.torch import load_file

        from passionsr.models.one_step import OneStepSR

        vae = _load_network(AutoencoderKL, folder / "vae")
        unet = _load_network(UNet2DConditionModel, folder / "unet")
        alpha = self.load_alpha(folder)
        context = load_file(folder / CONTEXT)["context"]
        return OneStepSR(vae.float(), unet.float(), context, family=self, alpha=alpha)

    def load_alpha(self, folder: Path) -> float:
        """alphas_cumprod at the timestep, of a model folder."""
        return self.alpha()

    def save(self, model: OneStepSR, folder: Path) -> list[str]:
        """vae/, unet/, the scheduler and context.safetensors; what else is there is kept."""
        from safetensors.torch import save_file

        model.vae.save_pretrained(folder / "vae", safe_serialization=True)
        model.unet.save_pretrained(folder / "unet", safe_serialization=True)
        self.save_scheduler(folder)
        save_file({"context": model.context.contiguous()}, folder / CONTEXT)
        found = [folder / name for name in FOLDERS if (folder / name).is_dir()]
        files = [
            path
            for part in found
            for path in sorted(part.iterdir())
            if path.is_file() and not is_foreign(path.name)
        ]
        return [CONTEXT, *(path.relative_to(folder).as_posix() for path in files)]

    def save_scheduler(self, folder: Path) -> None:
        """Write scheduler/ where `load_alpha` reads one."""

    def describe(self, model: OneStepSR) -> dict[str, Any]:
        """The configurations of both networks, the context's shape and alpha."""
        return {
            "alpha": model.alpha,
            "context_shape": list(model.context.shape),
            "vae": _plain_config(model.vae),
            "unet": _plain_config(model.unet),
        }

    def build(self, description: Mapping[str, Any]) -> OneStepSR:
        """Both networks from their configurations, on the meta device."""
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel

        from passionsr.models.one_step import OneStepSR

        with torch.device("meta"):
            vae = AutoencoderKL.from_config(description["vae"])
            unet = UNet2DConditionModel.from_config(description["unet"])
            context = torch.empty(description["context_shape"])
        model = OneStepSR(vae, unet, context, family=self, alpha=description["alpha"])
        return model.eval().requires_grad_(False)

    def architecture(self, model: str) -> OneStepSR:
        """A built-in model or a model folder, on the meta device."""
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from safetensors import SafetensorError, safe_open

        if model in self.built_in:
            with torch.device("meta"):
                return self.make(model)
        folder = Path(model)
        if not (folder / CONTEXT).is_file():
            raise UserError(f"{folder}: no model here; give a folder saved by passionsr")
        try:
            with safe_open(folder / CONTEXT, "pt") as file:
                shape = file.get_slice("context").get_shape()
        except (SafetensorError, OSError):
            problem = wrong_content(folder / CONTEXT)
            raise UserError(f"{folder / CONTEXT}: {problem}; get the model folder again") from None
        with reading_model(f"{folder}: not a whole model of family {self.name}"):
            return self.build(
                {
                    "alpha": self.alpha(),
                    "context_shape": shape,
                    "vae": AutoencoderKL.load_config(folder / "vae"),
                    "unet": UNet2DConditionModel.load_config(folder / "unet"),
                }
            )


def _load_network(kind: Any, folder: Path) -> Any:
    """A diffusers network of a folder, every tensor of its files used and none invented.

    Not by `from_pretrained`, which needs accelerate to skip the random initialisation. Raises
    UserError where the files do not fit the configuration.
    """
    import torch
    from safetensors.torch import load_file

    whole = folder / f"{WEIGHTS}.safetensors"
    # Weights above 10 GB are saved in several files.
    files = [whole] if whole.is_file() else sorted(folder.glob(f"{WEIGHTS}-*-of-*.safetensors"))
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(folder, local_files_only=True))
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as err:
        reason = " ".join(str(err).split())[:200]
        raise UserError(f"{folder}: weights and config.json do not fit ({reason})") from None
    return network


def _plain_config(module: Any) -> dict[str, Any]:
    """A diffusers configuration without its private entries, JSON-safe."""
    return {k: v for k, v in dict(module.config).items() if not k.startswith("_")}
