"""Write `torch_state.pt` and the numbers in it. Needs PyTorch, which nothing else here does."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    both = torch.arange(12.0)
    tensors = OrderedDict(net.state_dict())
    tensors["turned"] = torch.arange(6.0).reshape(2, 3).t()
    tensors["every_third"] = both[1::3]
    tensors["tail"] = both[8:]
    tensors["parameter"] = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    tensors["bfloat16"] = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    tensors["half"] = torch.tensor([0.5, 65504.0], dtype=torch.float16)
    tensors["flags"] = torch.tensor([True, False])
    tensors["bytes"] = torch.tensor([0, 255], dtype=torch.uint8)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["number"] = torch.tensor(7)
    nested = {"step": 3, "rate": 1e-3, "note": "é", "size": torch.Size([1, 2]), "last": None}
    torch.save({"state_dict": tensors, "list": [1, (True, [])], **nested}, HERE / "torch_state.pt")
    numbers = {k: v.detach().to(torch.float64).numpy() for k, v in tensors.items()}
    np.savez_compressed(HERE / "torch_state.npz", **numbers)


if __name__ == "__main__":
    main()
