"""U-Nets of diffusers: the numbers of the original, and no silence about what is not known.

`data/unet_one` and `unet_two` are random models that diffusers wrote, with what PyTorch computes.
"""

import json
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numpyro_diffusion import load, save, teachers
from numpyro_diffusion.schedules import Tabulated, from_betas
from numpyro_diffusion.teachers.scheduler import ddpm_schedule

DATA = Path(__file__).parent / "data"
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNITS = {
    "units": "grey value",
    "data_range": (0.0, 1.0),
    "transform": teachers.Affine(0.5, 0.5),
}
MODELS = {"unet_one": teachers.Noise(), "unet_two": teachers.Velocity()}
output = eqx.filter_jit(
    eqx.filter_vmap(lambda teacher, x, t: teacher.output(x, t), in_axes=(None, 0, 0))
)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(DATA / "unet_one", tmp_path / "unet_one"))


def edit(folder, name, **changes):
    path = folder / name
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v != "missing"}))


@pytest.mark.parametrize("name", MODELS)
def test_the_network_says_what_diffusers_says(name):
    teacher = teachers.diffusers_unet(DATA / name, **UNITS)
    expected = np.load(DATA / name / "expected.npz")
    assert teacher.shape == expected["x"].shape[1:]
    assert teacher.card.prediction == MODELS[name]
    # A fractional step is a time between two.
    got = output(teacher, jnp.asarray(expected["x"]), jnp.asarray(expected["steps"] / 99))
    np.testing.assert_allclose(got, expected["y"], atol=2e-6 * np.abs(expected["y"]).max())


@pytest.mark.parametrize("name", MODELS)
def test_every_step_has_the_noise_of_the_scheduler(name):
    schedule = teachers.diffusers_unet(DATA / name, **UNITS).schedule
    signal = np.load(DATA / name / "expected.npz")["signal"].astype(np.float64)
    alpha, sigma = jax.vmap(schedule)(jnp.arange(100) / 99)
    np.testing.assert_allclose(alpha**2, signal, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


def test_denoiser_is_that_of_the_scheduler(folder):
    teacher = teachers.diffusers_unet(folder, **UNITS)
    expected = np.load(folder / "expected.npz")
    x, noise, signal = expected["x"][1], expected["y"][1], expected["signal"][37]
    got = eqx.filter_jit(teacher.denoise)(jnp.asarray(x), jnp.asarray(37 / 99))
    want = (x - np.sqrt(1 - signal) * noise) / np.sqrt(signal)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert len(teacher.card.sha256) == 64 and teacher.card.units == "grey value"


def test_pipelines_old_names_and_torch_files_are_the_same_model(folder, tmp_path):
    expected = teachers.diffusers_unet(folder, **UNITS)
    pipeline = tmp_path / "pipeline"
    (pipeline / "scheduler").mkdir(parents=True)
    shutil.copytree(folder, pipeline / "unet")
    (pipeline / "unet" / "scheduler_config.json").rename(
        pipeline / "scheduler" / "scheduler_config.json"
    )
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / WEIGHTS)
    for new, name in old.items():
        weights = {k.replace(f".{new}.", f".{name}."): v for k, v in weights.items()}
    save_file(weights, pipeline / "unet" / WEIGHTS)
    loaded = teachers.diffusers_unet(pipeline, **UNITS)
    assert eqx.tree_equal(loaded.fn, expected.fn) and loaded.schedule == expected.schedule
    (pipeline / "unet" / WEIGHTS).unlink()
    shutil.copy(DATA / "torch_state.pt", pipeline / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="expected names and tensors"):
        teachers.diffusers_unet(pipeline, **UNITS)


UNKNOWN = {
    "block": ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
    "blocks the wrong way": (
        {"up_block_types": ["DownBlock2D", "UpBlock2D"]},
        "'DownBlock2D' in up",
    ),
    "option": ({"cross_attention_dim": 8}, "cross_attention_dim"),
    "embedding": ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    "activation": ({"act_fn": "gelu"}, "act_fn='gelu'"),
    "classes": ({"num_class_embeds": 10}, "num_class_embeds=10"),
    "resampling": ({"downsample_type": "resnet"}, "downsample_type='resnet'"),
    "another model": ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    "learned variance": ({"out_channels": 2}, "1 channels to 2"),
    "no size": ({"sample_size": None}, "pass `sample_size="),
    "another width": ({"block_out_channels": [4, 6]}, "do not fit: .*should have shape"),
    "another depth": ({"layers_per_block": 2}, "do not fit: .*down_blocks.0.resnets.1"),
    "fewer blocks": (
        {
            "block_out_channels": [4],
            "down_block_types": ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"],
        },
        "do not fit",
    ),
    "one width": ({"block_out_channels": [4]}, "as many blocks"),
    "no middle": ({"add_attention": False}, "no place for: .*mid_block.attentions"),
    "groups": ({"norm_num_groups": 3}, "do not fit"),
    "no groups": ({"norm_num_groups": 0}, "norm_num_groups=0"),
    "epsilon": ({"norm_eps": -1.0}, "norm_eps=-1.0 .* above 0"),
    "epsilon that is NaN": ({"norm_eps": float("nan")}, "NaN is no number of JSON"),
    "epsilon in words": ({"norm_eps": "small"}, "norm_eps='small'"),
    "width of time": ({"time_embedding_dim": 12}, "time has width 16 and should have 12"),
    "no heads": ({"attention_head_dim": 0}, "attention_head_dim=0"),
    "number for a flag": ({"center_input_sample": 1}, "center_input_sample=1"),
    "flag for a number": ({"layers_per_block": True}, "layers_per_block=True"),
    "a scale of zero": ({"mid_block_scale_factor": 0}, "mid_block_scale_factor=0"),
    "blocks that are none": ({"down_block_types": "DownBlock2D"}, "down_block_types='Down"),
    "an image too large": ({"sample_size": [10**6, 10**6]}, "more than 268435456 numbers"),
    "an image in words": ({"sample_size": "x"}, "sample_size='x'|`sample_size` must be"),
    "no class": ({"_class_name": None}, "expected a UNet2DModel; got None"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused_by_name(name, folder):
    changes, message = UNKNOWN[name]
    edit(folder, "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        teachers.diffusers_unet(folder, **UNITS)


@pytest.mark.long
@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
def test_settings_of_the_wrong_kind_raise_value_errors_only(name, folder):
    """Every setting as something else: either no matter, or refused."""
    before, refused = (folder / name).read_text(), 0
    for key in json.loads(before):
        for value in (None, "x", -1, [], [[]], 2.5, True)[: 7 if name == "config.json" else 4]:
            edit(folder, name, **{key: value})
            try:
                assert teachers.diffusers_unet(folder, **UNITS).shape == (1, 4, 8)
            except ValueError:
                refused += 1
            (folder / name).write_text(before)
    assert refused > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEuler"),
        ({"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"num_train_timesteps": 10**9}, "number of steps"),
        ({"trained_betas": [0.5, 1.0]}, r"betas in \(0, 1\)"),
        ({"trained_betas": [[0.5], [0.6]]}, "must hold numbers"),
        ({"trained_betas": {"a": 0.5}}, "must hold numbers"),
        ({"beta_start": "x"}, "`beta_start` must hold numbers"),
        ({"beta_start": -0.1, "beta_schedule": "scaled_linear"}, r"`beta_start` .*in \(0, 1\)"),
        ({"beta_end": True}, "`beta_end` must hold numbers"),
        ({"num_train_timesteps": True}, "number of steps"),
        ({"prediction_type": ["epsilon"]}, "prediction_type="),
    ],
)
def test_unknown_schedulers_are_refused(changes, message, folder):
    edit(folder, "scheduler_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        teachers.diffusers_unet(folder, **UNITS)


def test_schedule_and_prediction_can_be_given(folder):
    (folder / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config"):
        teachers.diffusers_unet(folder, **UNITS)
    schedule = Tabulated()
    teacher = teachers.diffusers_unet(
        folder, **UNITS, schedule=schedule, prediction=teachers.Denoised()
    )
    assert teacher.card.time_scale == 999.0 and teacher.card.prediction == teachers.Denoised()


def test_the_width_of_time_may_be_told(folder):
    before = teachers.diffusers_unet(folder, **UNITS)
    edit(folder, "config.json", time_embedding_dim=16)
    assert eqx.tree_equal(teachers.diffusers_unet(folder, **UNITS).fn, before.fn)


def test_shards_and_half_precision_are_read(folder):
    expected = teachers.diffusers_unet(folder, **UNITS)
    weights, stem = load_file(folder / WEIGHTS), "diffusion_pytorch_model"
    (folder / WEIGHTS).unlink()
    parts = {f"{stem}-0000{i + 1}-of-00002.safetensors": {} for i in range(2)}
    for i, (name, array) in enumerate(weights.items()):
        list(parts.values())[i % 2][name] = array
    for file, part in parts.items():
        save_file(part, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    loaded = teachers.diffusers_unet(folder, **UNITS)
    assert eqx.tree_equal(loaded.fn, expected.fn)
    for wrong in ({"x": "../../secret"}, {"x": "config.json"}, [], {"x": 3}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match="must map names of weights to files"):
            teachers.diffusers_unet(folder, **UNITS)
    index.write_text(json.dumps({"weight_map": dict(list(places.items())[1:])}))
    with pytest.raises(ValueError, match="holds other tensors"):
        teachers.diffusers_unet(folder, **UNITS)
    index.unlink()
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    save_file(half, folder / f"{stem}.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"fp16.safetensors.*Pass `variant=`"):
        teachers.diffusers_unet(folder, **UNITS)
    loaded = teachers.diffusers_unet(folder, **UNITS, variant="fp16")
    np.testing.assert_array_equal(
        loaded.fn.weights["conv_in.weight"], half["conv_in.weight"].astype(np.float32)
    )


def test_weights_that_are_not_numbers_are_refused_by_name(folder):
    weights = load_file(folder / WEIGHTS)
    spoiled = weights["conv_in.bias"].copy()
    spoiled[1] = np.nan
    for bad in (spoiled, spoiled.astype(np.float64), np.array([1e300, 0, 0, 0])):
        save_file(weights | {"conv_in.bias": bad}, folder / WEIGHTS)
        with pytest.raises(ValueError, match="`conv_in.bias` are NaN or infinite"):
            teachers.diffusers_unet(folder, **UNITS)
    save_file(weights | {"conv_in.bias": np.ones(4, np.int32)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="tensors of floating numbers.*conv_in.bias"):
        teachers.diffusers_unet(folder, **UNITS)


def test_a_unet_is_saved_and_loaded(folder, tmp_path):
    teacher = teachers.diffusers_unet(folder, **UNITS)
    save(tmp_path / "teacher.safetensors", teacher)
    again = load(tmp_path / "teacher.safetensors")
    assert eqx.tree_equal(again, teacher) and again.fn.form == teacher.fn.form


def test_damaged_folders_are_refused(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        teachers.diffusers_unet(folder, **UNITS)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        teachers.diffusers_unet(folder, **UNITS)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        teachers.diffusers_unet(folder, **UNITS)


def test_scaled_linear_betas_have_linear_roots():
    """Those of Stable Diffusion, and the signal that is left in the end as printed elsewhere."""
    config = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}
    config |= {"beta_start": 0.00085, "beta_end": 0.012}
    roots = 0.00085**0.5 + np.arange(1000) / 999 * (0.012**0.5 - 0.00085**0.5)
    signal = np.cumprod(1 - roots**2)
    alpha, _ = jax.vmap(ddpm_schedule(config))(jnp.arange(1000) / 999)
    np.testing.assert_allclose(alpha**2, signal, rtol=1e-9)
    assert signal[-1] ** 0.5 == pytest.approx(0.068265, rel=1e-5)  # Lin et al. (2024), table 1


def test_linear_betas_are_those_of_ddpm():
    """The signal that is left after all 1000 steps of DDPM, from its own recursion."""
    schedule, signal = Tabulated(), 1.0
    for step, beta in enumerate(np.linspace(1e-4, 0.02, 1000)):
        signal *= 1 - beta
        if step in (0, 499, 999):
            alpha, _ = schedule(jnp.asarray(step / 999))
            np.testing.assert_allclose(alpha**2, signal, rtol=1e-9)
    # Between two steps log-SNR is linear, and so beyond the ends.
    half = schedule.log_snr(jnp.asarray(100.5 / 999))
    np.testing.assert_allclose(half, schedule.log_snrs[100:102].mean(), rtol=1e-9)
    slope = schedule.log_snrs[1] - schedule.log_snrs[0]
    np.testing.assert_allclose(schedule.log_snr(-1 / 999), schedule.log_snrs[0] - slope, rtol=1e-9)


def test_tables_that_do_not_fall_are_refused():
    with pytest.raises(ValueError, match="fall with time"):
        Tabulated(jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="at least 2"):
        Tabulated(jnp.array([1.0]))
    with pytest.raises(ValueError, match="finite"):
        Tabulated(jnp.array([1.0, -jnp.inf]))
    with pytest.raises(ValueError, match="leave it out"):
        from_betas([0.1, 1.0])
