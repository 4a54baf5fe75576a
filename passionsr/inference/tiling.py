"""Images of any size in tiles: the UNet on blended latent tiles, the VAE with shared group norms.

Memory holds one tile's feature maps. What the other tiles have computed waits on disk (on the host,
where the model is on an accelerator); only 8-bit images and latents have the size of the image.
"official" stands for the tiles of OSEDiff's released script. The VAE must have the structure of
diffusers' Encoder and Decoder.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passionsr.data.images import to_tensor
from passionsr.inference.options import TileNorm
from passionsr.models.one_step import OneStepSR
from passionsr.utils.files import UserError

ENCODER_PAD = 32  # px, on every side of a tile
DECODER_PAD = 11  # latents


# -- latents ------------------------------------------------------------------------------------


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: stride tile - overlap, the last one shifted back to end at `length`.

    >>> starts(100, 64, 32), starts(64, 64, 32)
    ([0, 32, 36], [0])
    """
    count = 1 + math.ceil((length - tile) / (tile - overlap))
    return [min(i * (tile - overlap), length - tile) for i in range(count)]


def gaussian_weights(tile: int) -> np.ndarray:
    """(T, T) blending weights, rows y; centred at (T - 1) / 2 in x and T / 2 in y, as released."""
    i = np.arange(tile, dtype=np.float64)

    def bell(middle: float) -> np.ndarray:
        return np.exp(-((i - middle) ** 2) / (2 * 0.01 * tile**2)) / math.sqrt(2 * math.pi * 0.01)

    return np.outer(bell(tile / 2), bell((tile - 1) / 2))


def blended_eps(
    predict: Callable[[Tensor], Tensor], latent: Tensor, tile: int, overlap: int
) -> Tensor:
    """Noise prediction in tiles: (N, C, h, w) -> the same shape.

    Tiled when h w > tile^2; tiles then have the side min(tile, h, w). Where that is not more than
    the overlap, the overlap becomes half of it (the released loop does not end there).
    """
    height, width = latent.shape[2:]
    if height * width <= tile * tile:
        return predict(latent)
    tile = min(tile, height, width)
    overlap = overlap if overlap < tile else tile // 2
    weights = torch.from_numpy(gaussian_weights(tile)).to(latent)
    total, blended = torch.zeros_like(latent[:1, :1]), torch.zeros_like(latent)
    for x, y in product(starts(width, tile, overlap), starts(height, tile, overlap)):
        part = (slice(None), slice(None), slice(y, y + tile), slice(x, x + tile))
        blended[part] += predict(latent[part]) * weights
        total[part] += weights
    return blended / total


# -- VAE: tiles ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """One tile along one axis: computed from outer to outer_end, kept from inner to inner_end."""

    outer: int
    inner: int
    inner_end: int
    outer_end: int


def spans(length: int, tile: int, pad: int, multiple: int = 1) -> list[Span]:
    """Tiles along an axis: near-equal inner parts of at most `tile`, `pad` more on each inner side.

    Pads at the image's own borders belong to the inner parts. Bounds are multiples of `multiple`.
    """
    count = max(1, math.ceil((length - 2 * pad) / tile))
    size = math.ceil(math.ceil((length - 2 * pad) / count) / multiple) * multiple
    made = []
    for i in range(count):
        begin = 0 if i == 0 else pad + i * size
        end = length if i == count - 1 else min(pad + (i + 1) * size, length)
        if begin < end:
            made.append(Span(max(0, begin - pad), begin, end, min(length, end + pad)))
    return made


@dataclass(frozen=True)
class Tile:
    """A tile of two axes."""

    y: Span
    x: Span

    def outer(self, factor: int = 1) -> tuple[slice, slice]:
        """Where the tile is cut out, in pixels of `factor` per unit."""
        y, x = (slice(s.outer * factor, s.outer_end * factor) for s in (self.y, self.x))
        return y, x

    def inner(self, image: Tensor) -> Tensor:
        """What is kept of the tile's feature map (N, C, h, w), at any resolution of it."""
        cut = []
        for span, length in zip((self.y, self.x), image.shape[2:], strict=True):
            outer = span.outer_end - span.outer
            a, b = ((v - span.outer) * length for v in (span.inner, span.inner_end))
            assert a % outer == b % outer == 0, "a tile's bounds fall between pixels"
            cut.append(slice(a // outer, b // outer))
        return image[:, :, cut[0], cut[1]]


# -- VAE: group norms ---------------------------------------------------------------------------


class SharedNorm:
    """Statistics of one GroupNorm over all tiles.

    pooled: mean and variance over the kept parts, as if the feature map were whole. official: the
    pixel-weighted average of each tile's (with its pads), which leaves out the variance between
    tiles.
    """

    def __init__(self, norm: nn.GroupNorm, kind: TileNorm):
        self.norm, self.kind = norm, kind
        self.count = 0.0
        self.mean: Any = 0.0  # a tensor from the first tile on
        self.square: Any = 0.0

    def add(self, features: Tensor, tile: Tile) -> None:
        """Count one tile's input (1, C, h, w)."""
        part = tile.inner(features) if self.kind == "pooled" else features
        var, mean = torch.var_mean(part.reshape(self.norm.num_groups, -1), 1, correction=0)
        pixels = float(part.shape[2] * part.shape[3])
        mean, var = mean.double(), var.double()
        self.count += pixels
        self.mean = self.mean + pixels * mean
        self.square = self.square + pixels * (var + mean**2 if self.kind == "pooled" else var)

    def forward(self, features: Tensor) -> Tensor:
        """Normalize (1, C, ...) with what was counted."""
        mean = self.mean / self.count
        var = self.square / self.count - (mean**2 if self.kind == "pooled" else 0)
        groups = features.reshape(1, self.norm.num_groups, -1)
        flat = F.batch_norm(
            groups, mean.to(groups.dtype), var.clamp_min(0).to(groups.dtype), eps=self.norm.eps
        )
        shape = (1, -1) + (1,) * (features.dim() - 2)
        return flat.view_as(features) * self.norm.weight.view(shape) + self.norm.bias.view(shape)


@contextmanager
def _normalizing(shared: SharedNorm | None) -> Iterator[None]:
    """Let the module's own forward use the shared statistics."""
    if shared is None:
        yield
        return
    norm: Any = shared.norm
    norm.forward = shared.forward
    try:
        yield
    finally:
        del norm.forward


# -- VAE: the network as a list of steps ----------------------------------------------------------

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """What can be computed of a tile without knowing the others.

    norm: the group norm that is applied to the state's first tensor in it, if any.
    """

    norm: nn.GroupNorm | None
    run: Callable[..., State]


def _resnet_steps(block: Any) -> list[Step]:
    def first(x: Tensor) -> State:
        return block.conv1(block.nonlinearity(block.norm1(x))), x

    def second(h: Tensor, x: Tensor) -> State:
        h = block.conv2(block.dropout(block.nonlinearity(block.norm2(h))))
        kept = x if block.conv_shortcut is None else block.conv_shortcut(x)
        return ((kept + h) / block.output_scale_factor,)

    return [Step(block.norm1, first), Step(block.norm2, second)]


def _plain(module: nn.Module) -> Step:
    return Step(None, lambda x: (module(x),))


def network_steps(net: Any) -> list[Step]:
    """A diffusers VAE Encoder or Decoder as steps between its group norms."""
    middle = _resnet_steps(net.mid_block.resnets[0])
    for attention, block in zip(net.mid_block.attentions, net.mid_block.resnets[1:], strict=True):
        if attention is not None:
            middle.append(Step(attention.group_norm, lambda x, a=attention: (a(x),)))
        middle += _resnet_steps(block)
    encodes = hasattr(net, "down_blocks")
    outer: list[Step] = []
    for level in net.down_blocks if encodes else net.up_blocks:
        for block in level.resnets:
            outer += _resnet_steps(block)
        samplers = level.downsamplers if encodes else level.upsamplers
        outer += [_plain(s) for s in samplers or ()]
    last = Step(net.conv_norm_out, lambda x: (net.conv_out(net.conv_act(net.conv_norm_out(x))),))
    parts = [*outer, *middle] if encodes else [*middle, *outer]
    return [_plain(net.conv_in), *parts, last]


def _join(steps: Sequence[Step]) -> list[Step]:
    """Steps without a norm run together with the one before them: fewer trips to the disk."""

    def both(first: Step, second: Step) -> Step:
        return Step(first.norm, lambda *state: second.run(*first.run(*state)))

    joined: list[Step] = []
    for step in steps:
        if joined and step.norm is None:
            joined[-1] = both(joined[-1], step)
        else:
            joined.append(step)
    return joined


class _Waiting:
    """States of tiles that wait: files where the model runs on the CPU, host memory otherwise."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        self.host: dict[int, State] = {}

    def put(self, index: int, state: State) -> None:
        if self.device.type != "cpu":
            self.host[index] = tuple(t.cpu() for t in state)
            return
        for old in self.folder.glob(f"{index}-*.npy"):
            old.unlink()
        for place, tensor in enumerate(state):
            np.save(self.folder / f"{index}-{place}.npy", tensor.numpy())

    def take(self, index: int) -> State:
        if self.device.type != "cpu":
            return tuple(t.to(self.device) for t in self.host.pop(index))
        files = sorted(self.folder.glob(f"{index}-*.npy"))
        return tuple(torch.from_numpy(np.load(f)) for f in files)


def run_tiles(
    net: nn.Module,
    tiles: Sequence[Tile],
    load: Callable[[Tile], Tensor],
    emit: Callable[[Tile, Tensor], None],
    kind: TileNorm,
    device: torch.device,
) -> None:
    """Run a VAE Encoder or Decoder over tiles, all up to a group norm before any goes past it.

    load: a tile's input (1, C, h, w). emit: takes the kept part of a tile's output.
    """
    steps = _join(network_steps(net))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="passionsr-tiles-")))
        waiting = _Waiting(folder, device)
        shared = None
        for number, step in enumerate(steps):
            after = steps[number + 1].norm if number + 1 < len(steps) else None
            following = SharedNorm(after, kind) if after is not None else None
            for index, tile in enumerate(tiles):
                state = (load(tile),) if number == 0 else waiting.take(index)
                with _normalizing(shared):
                    state = step.run(*state)
                if following is None:
                    emit(tile, tile.inner(state[0]))
                    continue
                following.add(state[0], tile)
                waiting.put(index, state)
            shared = following


# -- the model ----------------------------------------------------------------------------------


def _tiles(height: int, width: int, tile: int, pad: int, multiple: int = 1) -> list[Tile]:
    cut = functools.partial(spans, tile=tile, pad=pad, multiple=multiple)
    return [Tile(y, x) for y, x in product(cut(height), cut(width))]


def encode_tiled(
    model: OneStepSR, image: np.ndarray, tile: int, kind: TileNorm
) -> tuple[Tensor, Tensor]:
    """(H, W, 3) uint8 -> mean and deviation of the scaled posterior, each (1, 4, h, w); tile in px.

    Whole where no side is over tile + 2 pads. Raises UserError for a tile that is no multiple of
    the latent factor.
    """
    factor = model.latent_factor
    if tile % factor:
        raise UserError(f"encoder tile {tile} px: give a multiple of {factor}")
    device = model.context.device
    height, width = image.shape[:2]
    if max(height, width) <= tile + 2 * ENCODER_PAD:
        return model.encode_distribution(to_tensor(image).to(device))
    found: dict[str, Tensor] = {}

    def emit(tile: Tile, part: Tensor) -> None:
        if not found:
            shape = (1, part.shape[1], height // factor, width // factor)
            found["moments"] = torch.empty(shape, device=device)
        y, x = tile.y.inner // factor, tile.x.inner // factor
        found["moments"][:, :, y : y + part.shape[2], x : x + part.shape[3]] = part

    run_tiles(
        model.vae.encoder,
        _tiles(height, width, tile, ENCODER_PAD, factor),
        lambda tile: to_tensor(image[tile.outer()]).to(device) * 2 - 1,
        emit,
        kind,
        device,
    )
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = found["moments"]
    quant = model.vae.quant_conv
    posterior = DiagonalGaussianDistribution(moments if quant is None else quant(moments))
    return posterior.mode() * model.scaling_factor, posterior.std * model.scaling_factor


def decode_tiled(
    model: OneStepSR,
    latent: Tensor,
    tile: int,
    kind: TileNorm,
    emit: Callable[[int, int, Tensor], None],
) -> None:
    """(1, 4, h, w) scaled latent -> calls emit(y, x, part) with parts (1, 3, H', W').

    Parts are in [0, 1] units, not clamped. tile: in latents. Whole where no side is over tile + 2
    pads.
    """
    height, width = latent.shape[2:]
    if max(height, width) <= tile + 2 * DECODER_PAD:
        emit(0, 0, model.decode(latent))
        return
    scaled = latent / model.scaling_factor
    after = model.vae.post_quant_conv
    scaled = scaled if after is None else after(scaled)
    factor = model.latent_factor

    run_tiles(
        model.vae.decoder,
        _tiles(height, width, tile, DECODER_PAD),
        lambda tile: scaled[(slice(None), slice(None), *tile.outer())],
        lambda tile, part: emit(tile.y.inner * factor, tile.x.inner * factor, part * 0.5 + 0.5),
        kind,
        latent.device,
    )
