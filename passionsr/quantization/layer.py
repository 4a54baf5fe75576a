"""The one quantized layer, for Conv2d and Linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passionsr.quantization.equivalent_transform import (
    ConvGeometry,
    ScaleInit,
    shift_response,
    whole_border,
)
from passionsr.quantization.parts import STANDARD, Parts
from passionsr.quantization.quantizer import Finder, Phase, Quantizer
from passionsr.quantization.spec import Form, QuantSpec

# (height, width) of the input map that a frozen border map is made for: larger than the border map
# of every kernel here, and a multiple of every stride, as the sizes of padded images are.
MAP_SIZE = (64, 64)


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """How one layer is quantized; written into scheme.json and enough to rebuild the layer.

    form, act_form: number format, and that of the activation quantizer where it differs.
    per_channel: one weight range per output channel.
    split: channels of the first of two ranges of input and weight; 0 for one range.
    let: with the learnable equivalent transformation. quantize_bias: the bias at weight bits, per
        tensor.
    act_site: which side of the product is quantized; behind "output" the next product has float
        inputs, which integer arithmetic cannot execute. quantize_act: False leaves activations
        float.
    parts: what the layer is built from, see `Parts`.
    map_size: what a frozen layer's border map is made for; it matters modulo the stride.
    """

    weight_bits: int
    act_bits: int
    form: Form = Form.AFFINE
    act_form: Form | None = None
    per_channel: bool = True
    split: int = 0
    let: bool = False
    quantize_bias: bool = False
    act_site: Literal["input", "output"] = "input"
    quantize_act: bool = True
    parts: Parts = STANDARD
    map_size: tuple[int, int] = MAP_SIZE


class _Kept:
    """A value computed once for as long as nothing it depends on changes or trains."""

    def __init__(self) -> None:
        self.value: Any = None
        self._key: Any = None

    def get(
        self, sources: Sequence[Tensor], make: Callable[[], Any], keep: bool, *rest: Any
    ) -> Any:
        """What `make` returns.

        sources: the tensors that it is made from; it is made again once one of them has changed, or
            `rest` has.
        keep: False never keeps it.
        """
        fixed = all(isinstance(s, nn.Parameter) and not s.requires_grad for s in sources)
        if not (fixed and keep):
            self.clear()
            return make()
        key = [rest, *((id(s), s._version) for s in sources)]
        if key != self._key:
            with torch.no_grad():
                self.value = make()
            self._key = key
        return self.value

    def clear(self) -> None:
        """Forget it."""
        self.value = self._key = None


class QuantizedLayer(nn.Module):
    """Conv2d or Linear with fake-quantized input, weight and, where asked, bias and LET.

    out = f(Qa((x - o) / s), Qw(W s)) + Q(b + W o) + border term (PassionSR Eq. 5). Without LET s is
    1 and o is 0. For a convolution `W o` is the interior value of f(o, W); along zero-padded
    borders f(o, W) differs from it and the difference is added in float, so that the transformation
    is exact there too.
    """

    weight: Any  # nn.Parameter; None once the layer is frozen
    bias: nn.Parameter | None
    # Of a frozen layer.
    weight_codes: Tensor
    bias_codes: Tensor | None
    float_bias: Tensor | None
    border: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, config: LayerConfig):
        super().__init__()
        self.config = config
        self.is_conv = isinstance(layer, nn.Conv2d)
        self.geometry = ConvGeometry.of(layer) if isinstance(layer, nn.Conv2d) else None
        out_channels, in_channels = layer.weight.shape[:2]
        if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
            raise ValueError("grouped convolutions and non-zero padding modes are not supported")
        weight_spec = QuantSpec(
            bits=config.weight_bits,
            form=config.form,
            per_channel=config.per_channel,
            split=config.split,
        )
        act_spec = QuantSpec(
            bits=config.act_bits,
            form=config.act_form or config.form,
            split=config.split,
            channel_axis=1 if self.is_conv else -1,
        )
        parts = config.parts
        # The layer's own storage: its owner drops it, and nothing here writes to it in place.
        self.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        self.bias = (
            None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        )
        self.weight_quantizer = parts.quantizer(weight_spec, (out_channels, in_channels))
        self.act_quantizer = (
            parts.input_quantizer(act_spec, in_channels, self.is_conv)
            if config.quantize_act
            else nn.Identity()
        )
        self.bias_quantizer = None
        if config.quantize_bias and (self.bias is not None or config.let):
            self.bias_quantizer = parts.quantizer(
                QuantSpec(bits=config.weight_bits, form=config.form, channel_axis=0)
            )
        self.transform = parts.transform(in_channels, self.is_conv) if config.let else None
        self.frozen = False
        self.keep_weight = True  # what is made of it, between forwards
        self._kept_weight, self._kept_sum, self._kept_shift = _Kept(), _Kept(), _Kept()
        self._frozen_weight: Tensor | None = None
        self._last_size = MAP_SIZE  # of the input map of the last forward pass
        self.to(layer.weight.device)

    # -- calibration --------------------------------------------------------------------------

    def start_collecting(self, mode: ScaleInit, reset: bool = True) -> None:
        """Let the next float forwards set LET's scale by EMA; reset: their first sets it.

        mode: see `init_scale`.
        """
        assert self.transform is not None
        if reset:
            self.transform.reset()
        self.transform.collecting = True
        self._let_init = mode

    def stop_collecting(self) -> None:
        """End `start_collecting`."""
        if self.transform is not None:
            self.transform.collecting = False

    @torch.no_grad()
    def init_weights(self, include_zero: bool = False, find: Finder = Quantizer.observe) -> None:
        """Set the weight's bounds by `find` (under the current LET), the bias's to its extremes."""
        bounds = find(self.weight_quantizer, self._transformed_weight())
        self.weight_quantizer.set_bounds(*bounds, include_zero)
        bias, _, _ = self._bias_and_border(MAP_SIZE)
        if self.bias_quantizer is not None and bias is not None:
            self.bias_quantizer.set_bounds(*self.bias_quantizer.observe(bias), include_zero)

    # -- forward ------------------------------------------------------------------------------

    def _bias_and_border(
        self, size: tuple[int, int]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(bias to quantize, what is added in float, LET's border term on a small map).

        The first two are the bias and LET's interior term W o, see `Parts.split_bias`, each (out,).
        The border term is the response to o minus its interior value, (1, out, h, w). size: of the
        input map.
        """
        if self.transform is None:
            return self.bias, None, None
        sources = [self.weight, self.transform.offset]
        sources += [] if self.bias is None else [self.bias]
        return self._kept_shift.get(sources, lambda: self._make_shift(size), self.keep_weight, size)

    def _make_shift(
        self, size: tuple[int, int]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """`_bias_and_border` of a layer with LET."""
        assert self.transform is not None
        weight = self.weight
        if self.is_conv:
            weight = self._kept_sum.get([weight], lambda: weight.sum((2, 3)), self.keep_weight)
        shift = weight @ self.transform.offset
        border = self._border_map(self.transform.offset, self.weight, shift, size)
        return *self.config.parts.split_bias(self.bias, shift), border

    def _border_map(
        self, offset: Tensor, weight: Tensor, shift: Tensor, size: tuple[int, int]
    ) -> Tensor | None:
        """Response to `offset` minus its interior value `shift`, (1, out, h, w); None unpadded."""
        if self.geometry is None or self.geometry.padding == (0, 0):
            return None
        response = shift_response(offset, weight, self.geometry, size)
        return response - shift.reshape(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer: Conv2d (N, C, H, W) or Linear (..., C)."""
        if self.frozen:
            return self._frozen_forward(x)
        if self.transform is not None:
            size = self._last_size = _size_of(x)
            if self.transform.collecting:
                self.transform.collect(x, self.weight, self._let_init)
                return self._op(x, self.weight, self.bias)
            bias, float_bias, border = self._bias_and_border(size)
            x = self.transform.input(x)
        else:
            bias, float_bias, border, size = self.bias, None, None, (0, 0)
        if self.weight_quantizer.phase is not Phase.QUANTIZED:
            weight = self._transformed_weight()
        else:
            weight = self._quantized_weight()
            if self.bias_quantizer is not None and bias is not None:
                bias = self.bias_quantizer(bias)
        return self._product(x, weight, _sum_of_given(bias, float_bias), border, size)

    def _transformed_weight(self) -> Tensor:
        return self.weight if self.transform is None else self.transform.weight(self.weight)

    def _quantized_weight(self) -> Tensor:
        """The fake-quantized weight, kept while nothing it depends on changes or trains."""
        sources: list[Tensor] = [self.weight, *self.weight_quantizer.parameters()]
        if self.transform is not None:
            sources += self.transform.parameters()
        # A quantizer with state must see every forward pass.
        return self._kept_weight.get(
            sources,
            lambda: self.weight_quantizer(self._transformed_weight()),
            self.keep_weight and self.weight_quantizer.is_stateless,
        )

    def _product(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        border: Tensor | None,
        size: tuple[int, int],
    ) -> Tensor:
        """Quantize the activation on its side of the product, and add LET's border term."""
        on_input = self.config.act_site == "input"
        out = self._op(self.act_quantizer(x) if on_input else x, weight, bias)
        if border is not None:
            out = out + self._whole_border(border, weight, size)
        return out if on_input else self.act_quantizer(out)

    def _op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        g = self.geometry
        if g is None:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation)

    def _whole_border(self, border: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
        """LET's border term on an input map of `size`; weight: W s as it is used.

        A frozen map of a strided convolution lacks rows where its size and this one differ modulo
        the stride; they are then made from the quantized weight.
        """
        assert self.geometry is not None
        assert self.transform is not None
        made_for = self.config.map_size if self.frozen else size
        whole = whole_border(border, self.geometry, made_for, size)
        if whole is None:
            offset = self.transform.offset / self.transform.scale
            found = self._border_map(offset, weight, weight.sum((2, 3)) @ offset, size)
            assert found is not None
            whole = whole_border(found, self.geometry, size, size)
            assert whole is not None
        return whole

    # -- freezing and loading -----------------------------------------------------------------

    @torch.no_grad()
    def freeze(self) -> None:
        """Replace float weights by integer codes; the float weight is dropped."""
        if self.frozen:
            return
        weight = self._transformed_weight()
        self.config = replace(self.config, map_size=self._map_size())
        bias, float_bias, border = self._bias_and_border(self.config.map_size)
        self.register_buffer("weight_codes", self.weight_quantizer.codes(weight))
        self.register_buffer("border", border)
        if self.bias_quantizer is not None and bias is not None:
            self.register_buffer("bias_codes", self.bias_quantizer.codes(bias))
        else:
            float_bias = _sum_of_given(bias, float_bias)
            self.register_buffer("bias_codes", None)
        float_bias = None if float_bias is None else float_bias.detach().clone()
        self.register_buffer("float_bias", float_bias)
        self._drop_float()

    def freeze_empty(self, saved: Mapping[str, Tensor]) -> None:
        """`freeze` with empty buffers, which `load_state_dict` replaces by those in `saved`.

        Nothing is computed: arithmetic on the meta device would import torch's compiler, and that
        takes longer than the rest of loading. saved: this layer's buffers by name.
        """
        out_channels = self.weight.shape[0]
        self.register_buffer("weight_codes", self.weight.new_empty(self.weight.shape))
        names = [name for name in ("bias_codes", "float_bias") if name in saved]
        if self.bias is not None and not names:
            names = ["float_bias"]  # missing, as `load_state_dict` will say
        for name in ("bias_codes", "float_bias"):
            empty = self.weight.new_empty(out_channels) if name in names else None
            self.register_buffer(name, empty)
        border = None
        if self.transform is not None and self.geometry and self.geometry.padding != (0, 0):
            size = saved["border"].shape[2:] if "border" in saved else (1, 1)
            border = self.weight.new_empty(1, out_channels, *size)
        self.register_buffer("border", border)
        self._drop_float()

    def _drop_float(self) -> None:
        for kept in (self._kept_weight, self._kept_sum, self._kept_shift):
            kept.clear()
        self.weight = None
        self.bias = None
        self.frozen = True

    def _map_size(self) -> tuple[int, int]:
        """The size near MAP_SIZE that is like the last one modulo the stride, if that matters."""
        g = self.geometry
        if self.transform is None or g is None or g.padding == (0, 0):
            return MAP_SIZE
        height, width = (
            most - (most - last) % stride
            for most, last, stride in zip(MAP_SIZE, self._last_size, g.stride, strict=True)
        )
        return height, width

    def _frozen_forward(self, x: Tensor) -> Tensor:
        size = _size_of(x)
        if self.transform is not None:
            x = self.transform.input(x)
        weight = self._frozen_weight
        if weight is None:
            weight = self.weight_quantizer.dequantize(self.weight_codes)
            self._frozen_weight = weight if self.keep_weight else None
        bias = self.float_bias
        if self.bias_codes is not None:
            assert self.bias_quantizer is not None
            bias = _sum_of_given(self.bias_quantizer.dequantize(self.bias_codes), self.float_bias)
        return self._product(x, weight, bias, self.border, size)

    def extra_repr(self) -> str:
        """Bits, for printing a model."""
        return f"W{self.config.weight_bits}A{self.config.act_bits}, let={self.config.let}"


def _size_of(x: Tensor) -> tuple[int, int]:
    return cast("tuple[int, int]", tuple(x.shape[-2:]))


def _sum_of_given(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, in which None counts as zero; None if both are None."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
