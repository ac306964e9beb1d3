r"""The U-Net of unconditional diffusion models as `diffusers` writes it (`UNet2DModel`), in plain JAX.

Residual blocks that know the time, self-attention at some resolutions, a path down and one up with all
intermediate results carried across. The weights stay under the names that they have in the file.

References:
    Ho, Jain & Abbeel (2020), Denoising Diffusion Probabilistic Models, NeurIPS.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..nets import convolve

__all__ = ["DiffusersUNet", "UNetForm"]


class UNetForm(NamedTuple):
    """Settings of a `DiffusersUNet` that its weights do not determine; names are those of `diffusers`."""

    block_out_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    layers_per_block: int
    mid_block: bool
    add_attention: bool
    attention_head_dim: int | None
    norm_num_groups: int
    attn_norm_num_groups: int | None
    norm_eps: float
    scale_shift: bool
    mid_block_scale_factor: float
    downsample_padding: int
    freq_shift: float
    flip_sin_to_cos: bool
    center_input_sample: bool


class DiffusersUNet(eqx.Module):
    r"""A `UNet2DModel`, `net(x, step)`, for one image of shape `(channels, height, width)`.

    Attributes:
        weights: Arrays by their names in the file.
        form: The rest.
    """

    weights: dict[str, Array]
    form: UNetForm = eqx.field(static=True)

    def __call__(self, x: Array, time: Scalar) -> Array:
        form = self.form
        embedding = self._time(jnp.asarray(time, x.dtype))
        h = 2 * x - 1 if form.center_input_sample else x
        h = self._conv("conv_in", h, form.block_out_channels[0])
        carried = [h]
        last = len(form.block_out_channels) - 1
        for i, channels in enumerate(form.block_out_channels):
            block = f"down_blocks.{i}"
            for j in range(form.layers_per_block):
                h = self._resnet(f"{block}.resnets.{j}", h, embedding, channels)
                if form.down_attention[i]:
                    h = self._attention(f"{block}.attentions.{j}", h, form.norm_num_groups)
                carried.append(h)
            if i < last:
                h = self._down(f"{block}.downsamplers.0.conv", h)
                carried.append(h)
        if form.mid_block:
            h = self._middle(h, embedding)
        for i, channels in enumerate(reversed(form.block_out_channels)):
            block = f"up_blocks.{i}"
            for j in range(form.layers_per_block + 1):
                h = jnp.concatenate([h, carried.pop()])
                h = self._resnet(f"{block}.resnets.{j}", h, embedding, channels)
                if form.up_attention[i]:
                    h = self._attention(f"{block}.attentions.{j}", h, form.norm_num_groups)
            if i < last:
                h = jnp.repeat(jnp.repeat(h, 2, 1), 2, 2)
                h = self._conv(f"{block}.upsamplers.0.conv", h, channels)
        h = jax.nn.silu(self._norm("conv_norm_out", h, form.norm_num_groups))
        return self._conv("conv_out", h, len(x))

    def _time(self, time: Scalar) -> Array:
        size = self.form.block_out_channels[0]
        half = size // 2
        rates = jnp.arange(half, dtype=time.dtype) / (half - self.form.freq_shift)
        angles = time * jnp.exp(-math.log(10_000) * rates)
        waves = [jnp.sin(angles), jnp.cos(angles)]
        features = jnp.concatenate(waves[::-1] if self.form.flip_sin_to_cos else waves)
        features = jnp.pad(features, (0, size - 2 * half))
        hidden = jax.nn.silu(self._linear("time_embedding.linear_1", features))
        return jax.nn.silu(self._linear("time_embedding.linear_2", hidden))

    def _resnet(
        self, name: str, x: Array, embedding: Array, channels: int, scale: float = 1.0
    ) -> Array:
        groups = self.form.norm_num_groups
        h = jax.nn.silu(self._norm(f"{name}.norm1", x, groups))
        h = self._conv(f"{name}.conv1", h, channels)
        of_time = self._linear(f"{name}.time_emb_proj", embedding)[:, None, None]
        if self.form.scale_shift:
            factor, shift = jnp.split(of_time, 2)
            h = self._norm(f"{name}.norm2", h, groups) * (1 + factor) + shift
        else:
            h = self._norm(f"{name}.norm2", h + of_time, groups)
        h = self._conv(f"{name}.conv2", jax.nn.silu(h), channels)
        if len(x) != channels:
            x = self._conv(f"{name}.conv_shortcut", x, channels, size=1)
        return (x + h) / scale

    def _attention(self, name: str, x: Array, groups: int | None, scale: float = 1.0) -> Array:
        flat = x.reshape(len(x), -1)
        h = (
            flat
            if groups is None
            else self._norm(f"{name}.group_norm", x, groups).reshape(flat.shape)
        )
        width = self.form.attention_head_dim or len(x)
        split = lambda a: a.reshape(-1, width, a.shape[-1])
        query, key, value = (
            split(self._linear(f"{name}.to_{letter}", h)) for letter in ("q", "k", "v")
        )
        scores = jnp.einsum("hdq,hdk->hqk", query, key) / math.sqrt(width)
        mixed = jnp.einsum("hqk,hdk->hdq", jax.nn.softmax(scores), value)
        out = self._linear(f"{name}.to_out.0", mixed.reshape(-1, flat.shape[-1]))
        return (out + flat).reshape(x.shape) / scale

    def _middle(self, h: Array, embedding: Array) -> Array:
        form, channels, scale = self.form, len(h), self.form.mid_block_scale_factor
        h = self._resnet("mid_block.resnets.0", h, embedding, channels, scale)
        if form.add_attention:
            groups = form.attn_norm_num_groups
            if groups is None and not form.scale_shift:
                groups = form.norm_num_groups
            h = self._attention("mid_block.attentions.0", h, groups, scale)
        return self._resnet("mid_block.resnets.1", h, embedding, channels, scale)

    def _down(self, name: str, x: Array) -> Array:
        padding = self.form.downsample_padding
        if padding == 0:  # one row and one column of zeros, below and to the right
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1)))
        return self._conv(name, x, len(x), stride=2, padding=padding)

    def _conv(
        self, name: str, x: Array, channels: int, size: int = 3, stride: int = 1, padding=None
    ) -> Array:
        weight = self._take(f"{name}.weight", (channels, len(x), size, size))
        edge = size // 2 if padding is None else padding
        y = convolve(x, weight, stride=stride, padding=edge)
        return y + self._take(f"{name}.bias", (channels,))[:, None, None]

    def _linear(self, name: str, x: Array) -> Array:
        """Over the first axis of `x`; a second one holds places."""
        weight = self.weights[f"{name}.weight"]
        y = self._take(f"{name}.weight", (len(weight), len(x))) @ x
        bias = self._take(f"{name}.bias", (len(weight),))
        return y + (bias if x.ndim == 1 else bias[:, None])

    def _norm(self, name: str, x: Array, groups: int) -> Array:
        grouped = x.reshape(groups, -1)
        centred = grouped - grouped.mean(1, keepdims=True)
        h = centred * jax.lax.rsqrt(grouped.var(1, keepdims=True) + self.form.norm_eps)
        weight, bias = (self._take(f"{name}.{part}", (len(x),)) for part in ("weight", "bias"))
        return h.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]

    def _take(self, name: str, shape: tuple[int, ...]) -> Array:
        weight = self.weights[name]
        if weight.shape != shape:
            raise ValueError(f"`{name}` should have shape {shape} and has {weight.shape}")
        return weight
