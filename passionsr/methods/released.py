"""What PassionSR's released code does differently from the paper, and nothing else.

Each piece is one option of `PassionSR` at its official value, plugged into a seam of the core:
`Parts` of layers and attentions, `FitConfig.clears_gradients`, the loss of a fit stage, the range
passes around it. What each difference is and what goes wrong is explained in
docs/methods.md#released-differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.range_passes import RangeRule, init_let, init_ranges, set_ranges
from passionsr.calibration.sub_models import SubModel, mse_to, parts_of, sub_quantizers
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import QuantizedAttention
from passionsr.quantization.equivalent_transform import ChannelTransform, ScaleInit
from passionsr.quantization.functional import MIN_WIDTH, round_half_away, scale_of
from passionsr.quantization.parts import Parts
from passionsr.quantization.quantizer import Quantize, Quantizer, times
from passionsr.quantization.spec import QuantSpec
from passionsr.utils.files import UserError

Item = tuple[Tensor, CalibrationBatch]
Loss = Callable[[Item], Tensor]

# -- the zero point of the previous forward pass ------------------------------------------------


def _straight_through(x: Tensor) -> Tensor:
    """The value that x + (round(x) - x).detach() has: not always the integer itself."""
    return (round_half_away(x) - x).add_(x)


class _FakeQuantizeStale(torch.autograd.Function):
    """The released chain of operations and the gradients that autograd gives it, to the bit.

    Of the chain only its input is kept.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, previous: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, lower, upper, previous)
        ctx.levels = levels
        scale, zero = _stale_grid(lower, upper, levels, previous)
        codes = _straight_through(x / scale).sub_(zero)
        return codes.clamp_(0, levels).add_(zero).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper, previous = ctx.saved_tensors
        levels = ctx.levels
        scale, zero = _stale_grid(lower, upper, levels, previous)

        def total(t: Tensor) -> Tensor:
            # Of equal shapes the sum is t itself, which is written to below.
            return t.sum_to_size(lower.shape).clone()

        codes = _straight_through(x / scale).sub_(zero)
        below, above = codes < 0, codes > levels
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        if learns:
            grad_scale = total(_product(grad, codes.clamp_(0, levels).add_(zero)))
        del codes
        inside = grad * scale
        if learns:
            grad_zero = total(inside)
        for outside in (below, above):
            if outside.stride() == inside.stride():
                inside.masked_fill_(outside, 0)
            else:
                inside = torch.where(outside, 0, inside)
        if not learns:
            return inside.div_(scale), None, None, None, None
        grad_zero = grad_zero - total(inside)
        grad_scale = grad_scale - total(_product(inside, (x / scale).div_(scale)))
        grad_x = inside.div_(scale)
        grad_upper = grad_scale / levels * (upper - lower >= MIN_WIDTH)
        return grad_x, grad_zero / previous - grad_upper, grad_upper, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A b, in b's memory where torch would choose b's layout, which decides a sum's order."""
    return b.mul_(a) if a.stride() == b.stride() else a * b


def _stale_grid(
    lower: Tensor, upper: Tensor, levels: int, previous: Tensor
) -> tuple[Tensor, Tensor]:
    return scale_of(lower, upper, levels), _straight_through(lower / previous)


def fake_quantize_stale(
    x: Tensor, lower: Tensor, upper: Tensor, levels: int, previous: Tensor
) -> Tensor:
    """Form.INT_ZP with the zero point of `previous`, the scale of the last forward pass.

    Its gradient pushes both bounds where values clip; kept to measure what that costs.

    Args:    as `fake_quantize`; previous: of the bounds' shape, without gradient.
    """
    return _FakeQuantizeStale.apply(x, lower, upper, levels, previous)


class ReleasedQuantizer(Quantizer):
    """A quantizer of the form INT_ZP as released.

    Args:
        spec, channels: as `Quantizer`. stale: until the scale is folded into the bounds, each
            forward pass uses the zero point of the scale before, and its gradient treats that as
            constant.
        half_of_axis: the first of two ranges has half of whatever the split axis holds.
    """

    def __init__(
        self, spec: QuantSpec, channels: tuple[int, ...], stale: bool, half_of_axis: bool = False
    ):
        super().__init__(spec, channels)
        self.half_of_axis = half_of_axis
        self.stale = stale
        # NaN: no forward pass under these bounds so far. Artifacts do not hold it.
        previous = torch.full_like(self.lower.detach(), torch.nan)
        self.previous_scale: Tensor
        self.register_buffer("previous_scale", previous if stale else None, persistent=False)

    @property
    def is_stateless(self) -> bool:
        """False while the zero point moves with every forward pass."""
        return not self.stale

    def forward_state(self) -> list[Tensor]:
        """The scale of the last forward pass, where it matters."""
        return [self.previous_scale] if self.stale else []

    @torch.no_grad()
    def set_bounds(self, lower: Tensor, upper: Tensor, include_zero: bool = False) -> None:
        """As `Quantizer.set_bounds`; the next forward pass has no predecessor."""
        super().set_bounds(lower, upper, include_zero)
        if self.stale:
            self.previous_scale.fill_(torch.nan)

    def fold_scale_into_bounds(self) -> None:
        """End of training: from now on the zero point is that of the present scale."""
        super().fold_scale_into_bounds()
        self.stale = False
        self.register_buffer("previous_scale", None, persistent=False)

    def bound_function(self, like: Tensor) -> Quantize:
        """One forward pass: its bounds, and the zero point of the one before."""
        if not self.stale:
            return super().bound_function(like)
        bounds, levels = self._bounds(like), self.spec.levels
        with torch.no_grad():
            scale = scale_of(self.lower, self.upper, levels)
            last = torch.where(self.previous_scale.isnan(), scale, self.previous_scale)
            self.previous_scale.copy_(scale)
            previous = self._broadcast(last, like)
        return lambda x, factors: fake_quantize_stale(times(x, factors), *bounds, levels, previous)

    def _first(self, size: int) -> int:
        return size // 2 if self.half_of_axis else super()._first(size)


# -- layers -------------------------------------------------------------------------------------


class ReleasedTransform(ChannelTransform):
    """LET of a linear layer as released.

    Args:
        added_offset: the input becomes (x + o) / s, which the layer's term W o does not correct.
        one_maximum: one maximum of all channels of an (N, C) input sets every channel's scale.
    """

    def __init__(self, channels: int, added_offset: bool, one_maximum: bool):
        super().__init__(channels, is_conv=False)
        self.added_offset, self.one_maximum = added_offset, one_maximum

    def subtracted(self) -> Tensor:
        """o, or -o."""
        return -self.offset if self.added_offset else self.offset

    def input_maxima(self, x: Tensor) -> Tensor:
        """As `ChannelTransform.input_maxima`."""
        maxima = super().input_maxima(x)
        return maxima.max().expand_as(maxima) if self.one_maximum and x.ndim == 2 else maxima


@dataclass(frozen=True)
class ReleasedParts(Parts):
    """Parts of layers and attentions with some of the released differences.

    stale_zero_point: see `ReleasedQuantizer`. added_offset, one_maximum: see `ReleasedTransform`.
    split_tokens: the two ranges of a linear layer's input divide dim 1, the tokens of (N, T, C).
    float_shift: the bias alone is quantized, and LET's term W o stays float.
    """

    stale_zero_point: bool = False
    added_offset: bool = False
    one_maximum: bool = False
    split_tokens: bool = False
    float_shift: bool = False

    def quantizer(self, spec: QuantSpec, channels: tuple[int, ...] = ()) -> Quantizer:
        """See `Parts.quantizer`."""
        if not self.stale_zero_point:
            return super().quantizer(spec, channels)
        return ReleasedQuantizer(spec, channels, stale=True)

    def input_quantizer(self, spec: QuantSpec, channels: int, is_conv: bool) -> Quantizer:
        """See `Parts.input_quantizer`."""
        if is_conv or not (spec.split and self.split_tokens):
            return super().input_quantizer(spec, channels, is_conv)
        spec = dataclasses.replace(spec, channel_axis=1)
        return ReleasedQuantizer(spec, (channels,), self.stale_zero_point, half_of_axis=True)

    def transform(self, channels: int, is_conv: bool) -> ChannelTransform:
        """See `Parts.transform`."""
        if is_conv or not (self.added_offset or self.one_maximum):
            return super().transform(channels, is_conv)
        return ReleasedTransform(channels, self.added_offset, self.one_maximum)

    def split_bias(self, bias: Tensor | None, shift: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """See `Parts.split_bias`."""
        return (bias, shift) if self.float_shift else super().split_bias(bias, shift)


# -- training -----------------------------------------------------------------------------------


def once_per_epoch(step: int, batches: int) -> bool:
    """For `FitConfig.clears_gradients`: an epoch's k-th step follows the sum of k gradients."""
    return step % batches == 0


def noisy_latent_loss(model: OneStepSR) -> Loss:
    """The encoder's: MSE of two latents that are sampled independently of each other."""

    def loss(item: Item) -> Tensor:
        mean, std = model.encode_distribution(item[0])
        latent, latent_std = item[1].latent, item[1].latent_std
        assert latent_std is not None
        target = latent + latent_std * torch.randn_like(latent)
        return mse_to(mean + std * torch.randn_like(mean), target)

    return loss


def eps_loss(model: OneStepSR) -> Loss:
    """The UNet's, for LET: MSE of the predicted noise (the paper's is of x0, PassionSR Eq. 10)."""

    def loss(item: Item) -> Tensor:
        target = (model.latent_gain * item[1].latent - item[1].x0) / model.eps_gain
        return mse_to(model.predict_eps(item[0]), target)

    return loss


def ground_truth_loss(sub: SubModel) -> Loss:
    """The decoder's: MSE to the ground truth (PassionSR Eq. 8: to the float decoder's output).

    UserError, when it is used, if the calibration batches have none.
    """

    def loss(item: Item) -> Tensor:
        if item[1].hr is None:
            raise UserError('decoder_target "hr" needs ground truth: give calibration targets')
        return mse_to(sub.run(item[0]), item[1].hr)

    return loss


def with_own_ranges(sub: SubModel, loss: Loss) -> Loss:
    """The loss of an item under that item's own minima and maxima, in place of the ranges."""

    def own(item: Item) -> Tensor:
        set_ranges(sub, [item[0]], RangeRule(mode="first"))
        return loss(item)

    return own


# -- ranges -------------------------------------------------------------------------------------


def init_let_and_ranges(
    sub: SubModel, inputs: Sequence[Tensor], mode: ScaleInit, checkpoints: Checkpoints
) -> None:
    """Ranges under the scales of the first batch; the scales go on to the EMA of all batches."""
    init_let(sub, inputs[:1], mode)
    init_first_ranges(sub, inputs, checkpoints)
    init_let(sub, inputs[1:], mode, continued=True)


def init_first_ranges(sub: SubModel, inputs: Sequence[Tensor], checkpoints: Checkpoints) -> None:
    """Ranges of the first batch for layers, of all batches (EMA) for the operands of attention."""
    init_ranges(sub, inputs, checkpoints)
    attention = {
        id(q) for p in parts_of(sub) if isinstance(p, QuantizedAttention) for q in p.children()
    }
    kept = {
        q: (q.lower.clone(), q.upper.clone()) for q in sub_quantizers(sub) if id(q) in attention
    }
    init_ranges(sub, inputs, checkpoints, RangeRule(mode="first", weights=False))
    for quantizer, bounds in kept.items():
        quantizer.set_bounds(*bounds)


def init_last_ranges(sub: SubModel, inputs: Sequence[Tensor], checkpoints: Checkpoints) -> None:
    """Ranges of the last batch."""
    init_ranges(sub, inputs[-1:], checkpoints, RangeRule(mode="first"))
