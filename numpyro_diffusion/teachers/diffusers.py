r"""Unconditional models from a folder of `diffusers`, without `diffusers` or PyTorch.

The folder holds `config.json`, the weights and, in it or beside it, `scheduler_config.json`. What this
package does not know is refused by name: a block left out in silence would be another model.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..tabulated import Tabulated
from .arrays import read_safetensors
from .card import PriorCard
from .files import MAX_BYTES, read_bytes
from .predictions import AbstractPrediction
from .scheduler import ddpm_prediction, ddpm_schedule
from .teacher import Teacher
from .torch_archive import read_torch
from .transforms import AbstractTransform
from .unet import UNet, UNetForm

__all__ = ["diffusers_unet"]

_WEIGHTS = "diffusion_pytorch_model"
_BLOCKS = {
    "DownBlock2D": False,
    "AttnDownBlock2D": True,
    "UpBlock2D": False,
    "AttnUpBlock2D": True,
}
# Options of `UNet2DModel`: its default, and the values understood here where not all are.
_OPTIONS: dict[str, tuple[Any, tuple | None]] = {
    "sample_size": (None, None),
    "in_channels": (3, None),
    "out_channels": (3, None),
    "center_input_sample": (False, (True, False)),
    "time_embedding_type": ("positional", ("positional",)),
    "time_embedding_dim": (None, None),
    "freq_shift": (0, None),
    "flip_sin_to_cos": (True, (True, False)),
    "down_block_types": (("DownBlock2D", *3 * ("AttnDownBlock2D",)), None),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D", None)),
    "up_block_types": ((*3 * ("AttnUpBlock2D",), "UpBlock2D"), None),
    "block_out_channels": ((224, 448, 672, 896), None),
    "layers_per_block": (2, None),
    "mid_block_scale_factor": (1, None),
    "downsample_padding": (1, (0, 1)),
    "downsample_type": ("conv", ("conv",)),
    "upsample_type": ("conv", ("conv",)),
    "dropout": (0.0, None),
    "act_fn": ("silu", ("silu", "swish")),
    "attention_head_dim": (8, None),
    "norm_num_groups": (32, None),
    "attn_norm_num_groups": (None, None),
    "norm_eps": (1e-5, None),
    "resnet_time_scale_shift": ("default", ("default", "scale_shift")),
    "add_attention": (True, (True, False)),
    "class_embed_type": (None, (None,)),
    "num_class_embeds": (None, (None,)),
    "num_train_timesteps": (None, None),
}
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def diffusers_unet(
    folder: str | os.PathLike,
    *,
    units: str,
    data_range: tuple[float, float],
    transform: AbstractTransform,
    schedule: Tabulated | None = None,
    prediction: AbstractPrediction | None = None,
    sample_size: tuple[int, int] | None = None,
    licence: str = "not stated",
    mean=0.0,
    variance=1.0,
    max_bytes: int = MAX_BYTES,
) -> Teacher:
    r"""A `UNet2DModel` that `save_pretrained` wrote, as a teacher of shape `(channels, height, width)`.

    Its steps $k = 0 \ldots K-1$ are our times $k / (K-1)$; between them log-SNR and step number run on
    linearly. A scheduler's clipping to the range of the data belongs to its sampler and is left out.

    Args:
        folder: With `config.json` and `diffusion_pytorch_model.safetensors` (or `.bin`); or the folder of a
            pipeline, with `unet` and `scheduler` in it.
        units: Physical units of the data, which the folder does not tell.
        data_range: Smallest and largest physical value.
        transform: From physical units to the network's: `Affine(0.5, 0.5)` for grey values from 0 to 1, if it
            was trained on -1 to 1 as is the custom.
        schedule: Noise schedule; that of `scheduler_config.json` by default.
        prediction: What the network gives; as `scheduler_config.json` says by default.
        sample_size: Height and width, if `config.json` does not tell.
        licence: Licence of the weights.
        mean: Rough mean of clean data in the network's units.
        variance: Rough variance of clean data in the network's units.
        max_bytes: Largest size of a file to read.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the model has a block or option that is not supported, or weights that do not fit.
    """
    folder = Path(folder)
    model = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        form, shape = _form(_read_json(model / "config.json"), sample_size)
        if schedule is None or prediction is None:
            beside = model if (model / "scheduler_config.json").is_file() else folder / "scheduler"
            scheduler = _read_json(beside / "scheduler_config.json")
            schedule = ddpm_schedule(scheduler) if schedule is None else schedule
            prediction = ddpm_prediction(scheduler) if prediction is None else prediction
    except TypeError as error:
        raise ValueError(f"a setting in {folder} is of the wrong kind: {error}.") from error
    data, weights = _read_weights(model, max_bytes)
    card = PriorCard(
        name=f"diffusers {folder.name}",
        shape=shape,
        units=units,
        data_range=data_range,
        transform=transform,
        schedule=schedule,
        prediction=prediction,
        time_scale=float(len(schedule.log_snrs) - 1),
        licence=licence,
        source=str(folder),
    ).verified(data)
    _check_weights(weights, form, shape)
    net = UNet({name: jnp.asarray(array) for name, array in weights.items()}, form)
    return Teacher(net, card, mean=mean, variance=variance)


def _form(config: dict[str, Any], sample_size) -> tuple[UNetForm, tuple[int, ...]]:
    """The options of a `config.json`, all understood, and the shape of one example."""
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"expected a UNet2DModel; got {config.get('_class_name')!r}.")
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(set(given) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"options of the U-Net that are not supported: {unknown}.")
    options = {name: default for name, (default, _) in _OPTIONS.items()} | given
    for name, (_, known) in _OPTIONS.items():
        if known is not None and options[name] not in known:
            raise ValueError(f"{name}={options[name]!r} is not supported; known are {known}.")
    size = options["sample_size"] if sample_size is None else sample_size
    size = [size, size] if isinstance(size, int) else size
    channels = options["in_channels"]
    if size is None:
        raise ValueError("`config.json` has no sample_size; pass `sample_size=(height, width)`.")
    shape = (channels, *size)
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"expected channels, height and width of an image; got {shape}.")
    if options["out_channels"] != channels:
        raise ValueError(
            f"the U-Net maps {channels} channels to {options['out_channels']}: learned variances and "
            "conditions are not supported."
        )
    blocks = {}
    for name, kind in (("down_block_types", "Down"), ("up_block_types", "Up")):
        for block in options[name]:
            if block not in _BLOCKS or kind not in block:
                raise ValueError(
                    f"{block!r} in {name} is not supported; known are {sorted(_BLOCKS)}."
                )
        blocks[name] = tuple(_BLOCKS[block] for block in options[name])
    widths = tuple(options["block_out_channels"])
    if not len(widths) == len(blocks["down_block_types"]) == len(blocks["up_block_types"]):
        raise ValueError("the U-Net must have as many blocks down as up, and a width for each.")
    if not widths[0] // 2 > options["freq_shift"]:
        raise ValueError(f"freq_shift={options['freq_shift']} leaves no frequencies of time.")
    options["block_out_channels"] = widths
    form = UNetForm(
        down_attention=blocks["down_block_types"],
        up_attention=blocks["up_block_types"],
        mid_block=options["mid_block_type"] is not None,
        scale_shift=options["resnet_time_scale_shift"] == "scale_shift",
        **{name: options[name] for name in UNetForm._fields if name in options},
    )
    hash(form)  # lists where numbers belong
    return form, shape


def _check_weights(weights: dict[str, np.ndarray], form: UNetForm, shape: tuple[int, ...]):
    """Every weight that the form needs is there, in its shape, and no other."""
    used: set[str] = set()

    class Watched(dict):
        def __getitem__(self, name):
            used.add(name)
            return super().__getitem__(name)

    try:
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(UNet(Watched(weights), form), x, jnp.float32(1.0))
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"weights and `config.json` do not fit: {error}.") from error
    if used != set(weights):
        rest = sorted(set(weights) - used)
        raise ValueError(f"weights that `config.json` has no place for: {rest[:5]}.")


def _read_weights(model: Path, max_bytes: int) -> tuple[bytes, dict[str, np.ndarray]]:
    if (model / f"{_WEIGHTS}.safetensors").is_file():
        data = read_bytes(model, f"{_WEIGHTS}.safetensors", max_bytes=max_bytes)
        weights = read_safetensors(data, max_bytes=max_bytes)
    else:
        data = read_bytes(model, f"{_WEIGHTS}.bin", max_bytes=max_bytes)
        weights = read_torch(data, max_bytes=max_bytes)
    if not all(isinstance(array, np.ndarray) for array in weights.values()):
        raise ValueError(f"expected names and tensors in {model}; got other objects among them.")
    return data, {_new_name(name): array.astype(np.float32) for name, array in weights.items()}


def _new_name(name: str) -> str:
    """Attention layers had other names until 2023."""
    *path, layer, part = name.split(".")
    return ".".join([*path, _OLD_NAMES.get(layer, layer), part])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path, max_bytes=2**20))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(content).__name__}.")
    return content
