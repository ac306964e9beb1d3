"""An audit as an ArviZ object, so that it can be kept beside a posterior."""

from typing import Any

import numpy as np

from ..auditing import STATISTICS, AuditReport
from .dims import Dims
from .export import _dataset, _plain

__all__ = ["audit_to_arviz"]

_LEVELS = ("denoising", "curl", "spectrum", "gradient", "offsets")
_MEMBERSHIP = {
    "auc": ("statistic", "level"),
    "auc_error": ("statistic", "level"),
    "tpr": ("statistic", "level"),
    "level": ("statistic",),
    "chosen_auc": ("statistic",),
    "chosen_auc_error": ("statistic",),
    "chosen_tpr": ("statistic",),
    "false_positive_rate": (),
    "member_scores": ("statistic", "level", "member"),
    "other_scores": ("statistic", "level", "held_out"),
}


def audit_to_arviz(report: AuditReport) -> Any:
    """Convert an audit to ArviZ: one group, `audit`, in `InferenceData` (ArviZ 0.x) or `xarray.DataTree`
    (ArviZ 1.x).

    Variables are called after the measurement and its attribute, such as `curl_ratio` and
    `denoising_residual`, with a dimension `level` that counts from 1 at `t_min`. Attributes hold the counts,
    the stored normaliser and the verdict.

    Args:
        report: Result of `audit`.
    """
    import arviz
    import xarray

    parts: dict[str, tuple[tuple[str, ...], Any]] = {
        "t": (("level",), report.times),
        "noise_level": (("level",), report.noise_levels),
    }
    for name in _LEVELS:
        part = getattr(report, name)
        for field, value in {} if part is None else part._asdict().items():
            if field not in ("times", "noise_levels"):
                parts[f"{name}_{field}"] = (("level",)[: np.ndim(value)], value)
    for name in ("draws", "rest"):
        part = getattr(report, name)
        for field, value in {} if part is None else part._asdict().items():
            parts[f"{name}_{field}"] = ((), value)
    if report.membership is not None:
        for field, dims in _MEMBERSHIP.items():
            parts[f"membership_{field}"] = (dims, getattr(report.membership, field))
    dataset = _dataset(
        xarray, {name: (d, np.asarray(value)) for name, (d, value) in parts.items()}, Dims()
    )
    if report.membership is not None:
        dataset = dataset.assign_coords(statistic=list(STATISTICS))
    kept = (
        "prior",
        "num_data",
        "num_held_out",
        "log_normalizer",
        "log_normalizer_error",
        "draws_from",
    )
    dataset.attrs.update({name: _plain(getattr(report, name)) for name in kept})
    dataset.attrs["verdict"] = "\n".join(report.verdict)
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(audit=dataset)
    return xarray.DataTree.from_dict({"/audit": dataset})
