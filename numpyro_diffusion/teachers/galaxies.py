r"""Galaxy priors of galaxygrad, read from the user's own copy of its wheel.

Score networks of single galaxies (HSC, ZTF, LSST) and lensed quasars, trained by their authors. The weights
state no licence, so none ship here: `pip download --no-deps galaxygrad==0.2.1` gets the wheel. Its code is
not run and need not be installed.
"""

import math
from pathlib import Path

from ..schedules import VariancePreserving
from .arrays import read_equinox_leaves
from .card import PriorCard
from .files import Source, read_bytes
from .mixer import MixerNet
from .predictions import Score
from .teacher import Teacher
from .transforms import LogScale

__all__ = ["galaxygrad"]

_MAX_BYTES = 64 * 2**20
# SHA-256 of the files in the wheel of galaxygrad 0.2.1.
_DIGESTS = {
    "eqx_hsc_ScoreNet32.eqx": "cb926562fcdfcbd33952fea8b2394074e75cb652fb7824c4c809a5f89a0a6532",
    "eqx_hsc_ScoreNet64.eqx": "4758114b1b77e4640ca7b834a976202aeb126fd7332ec07842af46d72c6b2e01",
    "eqx_ZTF_ScoreNet32.eqx": "60b29e6b9b7b4baa4ddc84132d083991c9e1e2910f55f3e9ae16e65bf0df8f47",
    "eqx_ZTF_ScoreNet64.eqx": "806cb83de98d8aff924dd13b267bcb157d72ddb819804a541134a06adb391065",
    "eqx_lsst_ScoreNet60.eqx": "93ef40f17a6e7e87e6527c90d5c1d4f2b17c77bbedfc14b08d014c53aa2db0e0",
    "eqx_quasar_lens72.eqx": "b1574b390d2e450521f6234ff3f3288937c53237a76189883d61342c9d293c2f",
}


def galaxygrad(
    source: Source,
    network: str = "galaxygrad/eqx_hsc_ScoreNet32.eqx",
    *,
    noise_min: float = 0.1,
    noise_max: float = 100.0,
    mean=0.0,
    variance=1.0,
) -> Teacher:
    r"""A galaxy prior of galaxygrad 0.2.1 as a teacher of shape `(height, width)`.

    It lives in $y = \log(x + 1) / 0.1$ of the flux $x$. The process is variance preserving with
    $\beta = 1$ to its time 10, $\alpha = e^{-\tau/2}$, which is our $t = \tau / 10$.

    Args:
        source: The wheel, the folder where the package `galaxygrad` lies, an `.eqx` file or its bytes.
        network: File in the wheel or folder. `eqx_hsc_ScoreNet32.eqx` and `64`, `eqx_ZTF_ScoreNet32.eqx` and
            `64`, `eqx_lsst_ScoreNet60.eqx` and `eqx_quasar_lens72.eqx` are checked against their digests.
        noise_min: Noise level at `t_min`, in the network's units: 0.1 is 1 % of $1 + x$.
        noise_max: Noise level at `t_max`.
        mean: Rough mean of clean data in the network's units.
        variance: Rough variance of clean data in the network's units.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights are not those of galaxygrad 0.2.1.

    References:
        Sampson et al. (2024), Score-matching neural networks for improved multi-band source separation,
        arXiv 2401.07313.
    """
    if not isinstance(source, bytes) and Path(source).suffix == ".eqx":
        source, network = read_bytes(source, max_bytes=_MAX_BYTES), Path(source).name
    member = None if isinstance(source, bytes) else network
    data = read_bytes(source, member, max_bytes=_MAX_BYTES)
    name = network.rpartition("/")[2]
    net = MixerNet.from_leaves(read_equinox_leaves(data))
    card = PriorCard(
        name=f"galaxygrad {name}",
        shape=net.shape,
        units="flux as in galaxygrad's training images (its zero point is not stated)",
        data_range=(-1.0, math.inf),
        transform=LogScale(offset=1.0, scale=0.1),
        schedule=VariancePreserving(beta_min=net.time_max, beta_max=net.time_max),
        prediction=Score(),
        time_scale=net.time_max,
        licence="not stated by the authors: use your own copy",
        source="https://pypi.org/project/galaxygrad/0.2.1/",
        sha256=_DIGESTS.get(name),
    ).verified(data)
    times = [float(card.schedule.time_at_noise(s)) for s in (noise_min, noise_max)]
    return Teacher(net, card, mean=mean, variance=variance, t_min=times[0], t_max=times[1])
