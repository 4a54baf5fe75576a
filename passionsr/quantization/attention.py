"""The two matrix products of attention, with quantized operands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from passionsr.quantization.equivalent_transform import (
    LearnedScale,
    ScaleInit,
    init_scale,
)
from passionsr.quantization.functional import PIECE, piece_size
from passionsr.quantization.parts import STANDARD, Parts
from passionsr.quantization.quantizer import Phase
from passionsr.quantization.spec import Form, QuantSpec
from passionsr.utils.files import UserError


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How the products of one attention are quantized.

    p_bits: bits of P where they differ from act_bits (Q-Diffusion's `sm_abit`).
    let: with the equivalent transformation; head_dim: size of its s_qk.
    let_tokens: number of key tokens that s_j is made for, which locks the model to it; None leaves
        s_j = 1.
    parts: what the quantizers are made by, see `Parts`.
    """

    act_bits: int
    form: Form = Form.AFFINE
    p_bits: int | None = None
    let: bool = False
    head_dim: int = 0
    let_tokens: int | None = None
    parts: Parts = STANDARD


# Elements of P that training keeps instead of making them twice (256 MB with what they come from).
KEPT_MAPS = 1 << 24


class QuantizedAttention(nn.Module):
    """A diffusers attention processor that quantizes q, k, P = softmax(q k^T) and v, per tensor.

    With LET: q s_qk, k / s_qk (one s per head channel, shared by the heads) and P_ij s_j, v_j /
    s_j.
    """

    def __init__(self, config: AttentionConfig):
        super().__init__()
        self.config = config
        spec = QuantSpec(bits=config.act_bits, form=config.form)
        make = config.parts.quantizer
        self.q = make(spec)
        self.k = make(spec)
        self.p = make(replace(spec, bits=config.p_bits or config.act_bits))
        self.v = make(spec)
        self.s_qk = LearnedScale(config.head_dim) if config.let else None
        self.s_v = LearnedScale(config.let_tokens) if config.let and config.let_tokens else None
        self.collecting = False

    def start_collecting(self, mode: ScaleInit, reset: bool = True) -> None:
        """Let the next float forwards set s_qk and s_j by EMA; reset: their first sets them.

        mode: see `init_scale`.
        """
        self.collecting = True
        self._let_init = mode
        for scale in (self.s_qk, self.s_v):
            if scale is not None and reset:
                scale.reset()

    def stop_collecting(self) -> None:
        """End `start_collecting`."""
        self.collecting = False

    def _transform_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.s_qk is None:
            return q, k
        if self.collecting:
            # q in the place of the weight: (max|k| / max|q|)^alpha
            amax_k, amax_q = k.abs().amax((0, 1, 2)), q.abs().amax((0, 1, 2))
            self.s_qk.update(init_scale(amax_k, amax_q, self._let_init))
            return q, k
        return q * self.s_qk.scale, k / self.s_qk.scale

    def _scale_pv(self, tokens: int) -> Tensor | None:
        if self.s_v is None:
            return None
        if tokens != self.config.let_tokens:
            raise UserError(
                f"attention has {tokens} key tokens but its LET scale was calibrated for "
                f"{self.config.let_tokens}: give an image of the calibrated size"
            )
        return self.s_v.scale

    def _transform_pv(self, p: Tensor, v: Tensor) -> tuple[Tensor | None, Tensor]:
        """(s_j that P is to be multiplied by, v / s_j); P only gives statistics."""
        scale = self._scale_pv(v.shape[2])
        if scale is None or self.s_v is None:
            return None, v
        if self.collecting:
            amax_v, amax_p = v.abs().amax((0, 1, 3)), p.amax((0, 1, 2))
            self.s_v.update(init_scale(amax_v, amax_p, self._let_init))
            return None, v
        return scale, v / scale[:, None]

    def _needs_whole_maps(self, q: Tensor, k: Tensor) -> bool:
        """Whether P is made at once: it is small, or its quantizer must see it as a whole."""
        size = q.shape[:3].numel() * k.shape[2]
        small = size <= (KEPT_MAPS if torch.is_grad_enabled() else piece_size(q))
        return small or self.collecting or not self.p.is_pure

    def _weighted(self, p: Tensor, s: Tensor | None, v: Tensor) -> Tensor:
        """Q(P s) v for a whole P.

        A large Q(P) is made again in the backward pass, in less time than it takes to make P; Q(P
        s) is kept with P where P s is not.
        """
        keeps = s is not None and self.p.is_stateless
        observes = self.p.phase is Phase.OBSERVING
        if keeps or observes or p.numel() <= PIECE or not p.requires_grad:
            return self.p(p, s) @ v
        quantize = self.p.with_current_bounds()
        return checkpoint(
            lambda p, v: quantize(p, s) @ v, p, v, use_reentrant=False, preserve_rng_state=False
        )

    def _attend_in_pieces(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Q(softmax(q k^T scale) s) Q(v / s), a piece of P at a time.

        P never exists as a whole, as in fused attention kernels, which cannot quantize it. The
        backward pass makes each piece again.
        """
        s = self._scale_pv(k.shape[2])
        v = self.v(v if s is None else v / s[:, None])
        quantize = self.p.with_current_bounds()

        def piece(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            p = _scaled_product(q, k, scale).softmax(-1)
            return quantize(p, s) @ v

        size, tokens = piece_size(q), k.shape[2]
        maps = max(1, size // (q.shape[2] * tokens))
        rows = max(1, size // (maps * tokens))
        learned = [q, k, v, *self.p.parameters(), *([] if s is None else [s])]
        trains = torch.is_grad_enabled() and any(t.requires_grad for t in learned)
        done = []
        for q_i, k_i, v_i in zip(*(x.flatten(0, 1).split(maps) for x in (q, k, v)), strict=True):
            parts = [
                checkpoint(piece, rows_i, k_i, v_i, use_reentrant=False, preserve_rng_state=False)
                if trains
                else piece(rows_i, k_i, v_i)
                for rows_i in q_i.split(rows, 1)
            ]
            done.append(torch.cat(parts, 1))
        return torch.cat(done).unflatten(0, q.shape[:2])

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Diffusers' processor call: (N, T, C) -> (N, T, C)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (N, heads, T, d)

        q, k, v = (
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(context)),
            heads(attn.to_v(context)),
        )
        q, k = self._transform_qk(q, k)
        q, k = self.q(q), self.k(k)
        if attention_mask is not None or self._needs_whole_maps(q, k):
            scores = _scaled_product(q, k, attn.scale)
            if attention_mask is not None:
                scores = scores + attention_mask
            p = scores.softmax(-1)
            s, v = self._transform_pv(p, v)
            out = self._weighted(p, s, self.v(v))
        else:
            out = self._attend_in_pieces(q, k, v, attn.scale)
        out = out.transpose(1, 2).flatten(2)  # (N, T, C)
        return attn.to_out[1](attn.to_out[0](out))


def _scaled_product(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Q k^T * scale, (..., T, d) -> (..., T, T'), without a pass of its own for the factor."""
    unused = q.new_empty(1, 1, 1)
    lead = q.shape[:-2]
    q, k = q.flatten(0, -3), k.flatten(0, -3)
    return torch.baddbmm(unused, q, k.transpose(1, 2), beta=0, alpha=scale).unflatten(0, lead)
