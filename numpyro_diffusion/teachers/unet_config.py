"""What a `config.json` of `diffusers` says about its U-Net, with every setting held against its kind."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import _faq
from .unet import UNetForm

__all__ = ["unet_form"]

_BLOCKS = {
    "DownBlock2D": False,
    "AttnDownBlock2D": True,
    "UpBlock2D": False,
    "AttnUpBlock2D": True,
}
_MAX_SIZE = 2**28  # numbers in one example


class _Kind(NamedTuple):
    words: str
    holds: Callable[[Any], bool]


def _one_of(*values) -> _Kind:
    told = " or ".join(map(repr, values))
    return _Kind(told, lambda value: any(type(value) is type(v) and value == v for v in values))


def _optional(kind: _Kind) -> _Kind:
    return _Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


def _list_of(kind: _Kind) -> _Kind:
    holds = lambda value: isinstance(value, list | tuple) and 1 <= len(value) <= 32
    return _Kind(
        f"a list of 1 to 32, each {kind.words}",
        lambda value: holds(value) and all(map(kind.holds, value)),
    )


def _is_finite(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


_COUNT = _Kind("a whole number from 1 to 1,000,000", lambda v: type(v) is int and 1 <= v <= 10**6)
_FLAG = _Kind("true or false", lambda value: type(value) is bool)
_NUMBER = _Kind("a finite number", _is_finite)
_POSITIVE = _Kind("a finite number above 0", lambda value: _is_finite(value) and value > 0)
_TEXT = _Kind("a string", lambda value: type(value) is str)

# Options of `UNet2DModel`: the default, and what is understood here.
_OPTIONS: dict[str, tuple[Any, _Kind]] = {
    "sample_size": (
        None,
        _Kind("any", lambda value: True),
    ),  # checked with the argument of that name
    "in_channels": (3, _COUNT),
    "out_channels": (3, _COUNT),
    "center_input_sample": (False, _FLAG),
    "time_embedding_type": ("positional", _one_of("positional")),
    "time_embedding_dim": (None, _optional(_COUNT)),
    "freq_shift": (0, _NUMBER),
    "flip_sin_to_cos": (True, _FLAG),
    "down_block_types": (("DownBlock2D", *3 * ("AttnDownBlock2D",)), _list_of(_TEXT)),
    "mid_block_type": ("UNetMidBlock2D", _one_of("UNetMidBlock2D", None)),
    "up_block_types": ((*3 * ("AttnUpBlock2D",), "UpBlock2D"), _list_of(_TEXT)),
    "block_out_channels": ((224, 448, 672, 896), _list_of(_COUNT)),
    "layers_per_block": (
        2,
        _Kind("a whole number from 1 to 100", lambda v: _COUNT.holds(v) and v <= 100),
    ),
    "mid_block_scale_factor": (1, _POSITIVE),
    "downsample_padding": (1, _one_of(0, 1)),
    "downsample_type": ("conv", _one_of("conv")),
    "upsample_type": ("conv", _one_of("conv")),
    "dropout": (0.0, _NUMBER),
    "act_fn": ("silu", _one_of("silu", "swish")),
    "attention_head_dim": (8, _optional(_COUNT)),
    "norm_num_groups": (32, _COUNT),
    "attn_norm_num_groups": (None, _optional(_COUNT)),
    "norm_eps": (1e-5, _POSITIVE),
    "resnet_time_scale_shift": ("default", _one_of("default", "scale_shift")),
    "add_attention": (True, _FLAG),
    "class_embed_type": (None, _one_of(None)),
    "num_class_embeds": (None, _one_of(None)),
    "num_train_timesteps": (None, _optional(_COUNT)),
}


def unet_form(config: dict[str, Any], sample_size) -> tuple[UNetForm, tuple[int, ...], int]:
    """The options of a `config.json`, all understood.

    Args:
        config: Its content.
        sample_size: Height and width, if it does not tell; else `None`.

    Returns:
        Form of the network, shape of one example, and width of the embedding of time.

    Raises:
        ValueError: If an option is not known, or is of the wrong kind.
    """
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"expected a UNet2DModel; got {config.get('_class_name')!r:.80}. {_faq.foreign_weights}"
        )
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(set(given) - set(_OPTIONS))
    if unknown:
        raise ValueError(
            f"options of the U-Net that are not supported: {unknown[:10]}. {_faq.foreign_weights}"
        )
    options = {name: default for name, (default, _) in _OPTIONS.items()} | given
    for name, (_, kind) in _OPTIONS.items():
        if not kind.holds(options[name]):
            raise ValueError(
                f"{name}={options[name]!r:.80} is not supported; expected "
                f"{kind.words}. {_faq.foreign_weights}"
            )
    shape = _shape(options, sample_size)
    if options["out_channels"] != options["in_channels"]:
        raise ValueError(
            f"the U-Net maps {options['in_channels']} channels to {options['out_channels']}: learned "
            f"variances and conditions are not supported. {_faq.foreign_weights}"
        )
    blocks = {}
    for name, kind in (("down_block_types", "Down"), ("up_block_types", "Up")):
        for block in options[name]:
            if block not in _BLOCKS or kind not in block:
                raise ValueError(
                    f"{block!r:.80} in {name} is not supported; known are "
                    f"{sorted(_BLOCKS)}. {_faq.foreign_weights}"
                )
        blocks[name] = tuple(_BLOCKS[block] for block in options[name])
    widths = tuple(options["block_out_channels"])
    if not len(widths) == len(blocks["down_block_types"]) == len(blocks["up_block_types"]):
        raise ValueError(
            "the U-Net must have as many blocks down as up, and a width for "
            f"each. {_faq.foreign_weights}"
        )
    if not widths[0] // 2 > options["freq_shift"]:
        raise ValueError(
            f"freq_shift={options['freq_shift']} leaves no frequencies of "
            f"time. {_faq.foreign_weights}"
        )
    options["block_out_channels"] = widths
    form = UNetForm(
        down_attention=blocks["down_block_types"],
        up_attention=blocks["up_block_types"],
        mid_block=options["mid_block_type"] is not None,
        scale_shift=options["resnet_time_scale_shift"] == "scale_shift",
        **{name: options[name] for name in UNetForm._fields if name in options},
    )
    return form, shape, options["time_embedding_dim"] or 4 * widths[0]


def _shape(options: dict[str, Any], sample_size) -> tuple[int, ...]:
    size = options["sample_size"] if sample_size is None else sample_size
    if size is None:
        raise ValueError(
            "`config.json` has no sample_size; pass `sample_size=(height, "
            f"width)`. {_faq.foreign_weights}"
        )
    size = (size, size) if type(size) is int else size
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_COUNT.holds, size))):
        raise ValueError(
            "`sample_size` must be height and width of an image; got "
            f"{size!r:.80}. {_faq.foreign_weights}"
        )
    shape = (options["in_channels"], *size)
    if math.prod(shape) > _MAX_SIZE:
        raise ValueError(
            f"an example of shape {shape} has more than {_MAX_SIZE} numbers. {_faq.foreign_weights}"
        )
    return shape
