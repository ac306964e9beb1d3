"""Write two small random U-Nets and what they say. Needs PyTorch and diffusers, as nothing else here."""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

HERE = Path(__file__).parent
COMMON = {
    "sample_size": (4, 8),
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "layers_per_block": 1,
}
MODELS = {
    "unet_one": (
        {
            "in_channels": 1,
            "out_channels": 1,
            "attention_head_dim": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        DDPMScheduler(num_train_timesteps=100, beta_end=0.2),
    ),
    "unet_two": (
        {
            "in_channels": 2,
            "out_channels": 2,
            "attention_head_dim": None,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "mid_block_scale_factor": 1.5,
            "center_input_sample": True,
        },
        DDIMScheduler(
            num_train_timesteps=100,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
        ),
    ),
}


def main() -> None:
    torch.manual_seed(0)
    for name, (options, scheduler) in MODELS.items():
        net = UNet2DModel(**COMMON, **options).eval()
        with torch.no_grad():
            for weight in net.parameters():  # no layer left at zero or one
                weight.add_(0.15 * torch.randn_like(weight))
        net.half().save_pretrained(HERE / name)  # halves the files; `net` then has what they hold
        net.float()
        scheduler.save_pretrained(HERE / name)
        x = torch.randn(3, options["in_channels"], *COMMON["sample_size"])
        steps = torch.tensor([0.0, 37.0, 98.5])
        with torch.no_grad():
            y = net(x, steps).sample
        np.savez_compressed(
            HERE / name / "expected.npz",
            x=x.numpy(),
            steps=steps.numpy(),
            y=y.numpy(),
            signal=scheduler.alphas_cumprod.numpy(),
        )


if __name__ == "__main__":
    main()
