r"""Unconditional models from a folder of `diffusers`, without `diffusers` or PyTorch.

The folder holds `config.json`, the weights and, in it or beside it, `scheduler_config.json`. What this
package does not know is refused by name: a block left out in silence would be another model.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._safetensors import check_finite
from ..schedules import Tabulated
from .arrays import read_safetensors
from .card import PriorCard
from .files import MAX_BYTES, read_bytes
from .predictions import AbstractPrediction
from .scheduler import ddpm_prediction, ddpm_schedule
from .teacher import Teacher
from .torch_archive import read_torch
from .transforms import AbstractTransform
from .unet import DiffusersUNet, UNetForm
from .unet_config import unet_form

__all__ = ["diffusers_unet"]

_WEIGHTS = "diffusion_pytorch_model"
_MAX_SHARDS = 1000
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
    variant: str | None = None,
    licence: str = "not stated",
    mean=0.0,
    variance=1.0,
    max_bytes: int = MAX_BYTES,
) -> Teacher:
    r"""A `UNet2DModel` that `save_pretrained` wrote, as a teacher of shape `(channels, height, width)`.

    Its steps $k = 0 \ldots K-1$ are our times $k / (K-1)$; between them log-SNR and step number run on
    linearly. A scheduler's clipping to the range of the data belongs to its sampler and is left out.

    Args:
        folder: With `config.json` and `diffusion_pytorch_model.safetensors` (or `.bin`, or an index and the
            shards that it names); or the folder of a pipeline, with `unet` and `scheduler` in it.
        units: Physical units of the data, which the folder does not tell.
        data_range: Smallest and largest physical value.
        transform: From physical units to the network's: `Affine(0.5, 0.5)` for grey values from 0 to 1, if it
            was trained on -1 to 1 as is the custom.
        schedule: Noise schedule; that of `scheduler_config.json` by default.
        prediction: What the network gives; as `scheduler_config.json` says by default.
        sample_size: Height and width, if `config.json` does not tell.
        variant: Part of the file name for weights kept in another precision: `"fp16"` for
            `diffusion_pytorch_model.fp16.safetensors`.
        licence: Licence of the weights.
        mean: Rough mean of clean data in the network's units.
        variance: Rough variance of clean data in the network's units.
        max_bytes: Largest size of the weights to read.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the model has a block or option that is not supported, or weights that do not fit.
    """
    folder = Path(folder)
    model = folder / "unet" if (folder / "unet").is_dir() else folder
    form, shape, embedding = unet_form(_read_json(model / "config.json"), sample_size)
    if schedule is None or prediction is None:
        beside = model if (model / "scheduler_config.json").is_file() else folder / "scheduler"
        scheduler = _read_json(beside / "scheduler_config.json")
        schedule = ddpm_schedule(scheduler) if schedule is None else schedule
        prediction = ddpm_prediction(scheduler) if prediction is None else prediction
    digest, weights = _read_weights(model, variant, max_bytes)
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
        sha256=digest,
    )
    _check_weights(weights, form, shape, embedding)
    net = DiffusersUNet({name: jnp.asarray(array) for name, array in weights.items()}, form)
    return Teacher(net, card, mean=mean, variance=variance)


def _check_weights(weights: dict[str, np.ndarray], form: UNetForm, shape, embedding: int):
    """Every weight that the form needs is there, finite and in its shape, and no other."""
    used: set[str] = set()

    class Watched(dict):
        def __getitem__(self, name):
            used.add(name)
            return super().__getitem__(name)

    try:
        check_finite(weights.items())
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(DiffusersUNet(Watched(weights), form), x, jnp.float32(1.0))
        width = len(weights["time_embedding.linear_1.weight"])
        if width != embedding:
            raise ValueError(f"the embedding of time has width {width} and should have {embedding}")
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ValueError(
            f"weights and `config.json` do not fit: {_faq.bare(error)}. {_faq.foreign_weights}"
        ) from error
    if used != set(weights):
        rest = sorted(set(weights) - used)
        raise ValueError(
            f"weights that `config.json` has no place for: {rest[:5]}. {_faq.foreign_weights}"
        )


def _read_weights(model: Path, variant: str | None, max_bytes: int):
    """Digest of all files of weights, and the weights by name."""
    stem = _WEIGHTS if variant is None else f"{_WEIGHTS}.{variant}"
    middle = "" if variant is None else f".{variant}"
    indices = [f"{_WEIGHTS}.{kind}.index{middle}.json" for kind in ("safetensors", "bin")]
    names = [f"{stem}.safetensors", f"{stem}.bin", *indices]
    found = next((name for name in names if (model / name).is_file()), None)
    if found is None:
        there = sorted(path.name for path in model.glob(f"{_WEIGHTS}*"))
        raise FileNotFoundError(
            f"no {names[0]} in {model} (working directory {Path.cwd()}), nor {names[1]} or shards of one; "
            f"it holds {there or 'no weights'}. "
            + ("Pass `variant=`, `'fp16'` for example." if there else "Download the weights.")
            + f" {_faq.paths}"
        )
    files = _shards(model, found) if found in indices else {found: None}
    digest, weights, left = hashlib.sha256(), {}, max_bytes
    for name, expected in files.items():
        data = read_bytes(model, name, max_bytes=left)
        digest.update(data)
        left -= len(data)
        read = read_safetensors if name.endswith(".safetensors") else read_torch
        part = read(data, max_bytes=max_bytes)
        if expected is not None and (part.keys() != expected or weights.keys() & part.keys()):
            raise ValueError(
                f"{name} in {model} holds other tensors than {found} says. {_faq.foreign_weights}"
            )
        weights |= part
    for name, array in weights.items():
        floating = isinstance(array, np.ndarray) and jnp.issubdtype(array.dtype, jnp.floating)
        if not (floating and isinstance(name, str)):
            raise ValueError(
                f"expected names and tensors of floating numbers in {model}; got other objects among them "
                f"({name!r:.80}). {_faq.foreign_weights}"
            )
    with np.errstate(over="ignore"):  # found again as an infinite weight
        cast = {_new_name(name): array.astype(np.float32) for name, array in weights.items()}
    if len(cast) != len(weights):
        raise ValueError(
            f"{model} holds a weight under its old and its new name. {_faq.foreign_weights}"
        )
    return digest.hexdigest(), cast


def _shards(model: Path, index: str) -> dict[str, set[str]]:
    """Names of the files in which weights are spread, and which of them are in each."""
    places = _read_json(model / index, 16 * 2**20).get("weight_map")
    pattern = re.compile(rf"{_WEIGHTS}[.\w-]*\.{'bin' if '.bin.' in index else 'safetensors'}")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and pattern.fullmatch(file) for file in places.values()
    ):
        raise ValueError(
            f"{model / index} must map names of weights to files in its "
            f"folder. {_faq.foreign_weights}"
        )
    files: dict[str, set[str]] = {}
    for name, file in places.items():
        files.setdefault(file, set()).add(name)
    if len(files) > _MAX_SHARDS:
        raise ValueError(
            f"{model / index} names {len(files)} files; at most {_MAX_SHARDS} are "
            f"read. {_faq.foreign_weights}"
        )
    return dict(sorted(files.items()))


def _new_name(name: str) -> str:
    """Attention layers had other names until 2023."""
    head, _, part = name.rpartition(".")
    front, dot, layer = head.rpartition(".")
    return f"{front}{dot}{_OLD_NAMES.get(layer, layer)}.{part}" if head else name


def _read_json(path: Path, max_bytes: int = 2**20) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path, max_bytes=max_bytes), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. {_faq.unreadable}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a JSON object; got {type(content).__name__}. {_faq.unreadable}"
        )
    return content


def _no_number(text: str):
    raise ValueError(f"{text} is no number of JSON")
