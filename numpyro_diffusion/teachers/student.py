r"""Energies initialised from a teacher's weights, for distillation.

A student that begins as a Gaussian has to learn all that the teacher knows. One that has the teacher's
network as its backbone begins near the end.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_numbers
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, InnerProductEnergy
from ..energies.reverse import draw_prior
from ..schedules import VariancePreserving
from .teacher import Teacher

__all__ = ["TeacherBackbone", "draw_data", "student_of", "teacher_weights"]


class TeacherBackbone(eqx.Module):
    r"""The backbone of an inner-product energy whose denoiser is about the teacher's.

    In the coordinates $w = v / \sqrt{s^2 + d^2}$ of `InnerProductEnergy`, with $v = u - m$ and one $d$,

    $$F(w) = \frac12 \frac{D(u) - m - c_{skip} v}{c_{out}}, \quad c_{skip} = \frac{d^2}{s^2 + d^2}, \quad
      c_{out} = \frac{s d}{\sqrt{s^2 + d^2}},$$

    where $D$ is the teacher's denoiser at noise level $s$. The energy's denoiser has $F + J_F^\top w$ in
    place of $2 F$: the same where $D(u) - m$ is linear in $v$, and symmetric.

    Attributes:
        teacher: The teacher, whose weights are the backbone's.
        mean: $m$, of the shape of one example, in the network's units.
        scale: $d$, in the network's units.
    """

    teacher: Teacher
    mean: Array
    scale: float = eqx.field(static=True)

    def __call__(self, w: Array, c_noise: Scalar) -> Array:
        s, schedule = jnp.exp(4 * c_noise), self.teacher.schedule
        total = jnp.sqrt(s**2 + self.scale**2)
        v = w * total
        u = v + self.mean.astype(w.dtype)
        t = schedule.time_at_noise(s).astype(w.dtype)
        alpha_t, _ = schedule(t)
        moved = self.teacher.denoise(alpha_t * u, t) - u
        # (D - m - c_skip v) / c_out without a difference of large numbers: c_skip = 1 - s^2 / total^2.
        return 0.5 * (moved + (s / total) ** 2 * v) * total / (s * self.scale)


def draw_data(
    key: PRNGKey,
    teacher: AbstractDenoiser,
    num: int,
    *,
    num_steps: int = 100,
    batch_size: int = 64,
) -> Array:
    r"""Examples of a teacher whose training data are not at hand: its own draws, denoised once more.

    A draw of a prior is a noised variable, at `t_min`. As data it would be noised again, and a student
    would never see an example with as little noise as its energy is asked about: in $d$ dimensions those with
    noise $\sqrt 2 s$ in place of $s$ are all elsewhere. The denoised mean of the draw is free of noise, and
    of detail that is smaller than $s$: of variances $v$ it leaves $v^2 / (v + s^2)$.

    Args:
        key: PRNG key.
        teacher: The teacher.
        num: How many.
        num_steps: Steps of the reverse process, one evaluation each.
        batch_size: So many at a time.

    Returns:
        Array of shape `(num, *shape)`, in the network's units.

    Raises:
        ValueError: If a number is not positive.
    """
    num, num_steps, batch_size = whole_numbers(
        1, num=num, num_steps=num_steps, batch_size=batch_size
    )
    return _draw_data(teacher, jax.random.split(key, num), num_steps, min(batch_size, num))


@eqx.filter_jit
def _draw_data(teacher, keys, num_steps, batch_size):
    t_min = jnp.asarray(teacher.t_min, jnp.result_type(float))
    alpha = teacher.schedule(t_min)[0]

    def one(key):
        u = draw_prior(teacher, key, num_steps)
        return teacher.denoise((alpha * u).astype(u.dtype), t_min)

    return jax.lax.map(one, keys, batch_size=batch_size)


def student_of(teacher: Teacher, data, *, noise_min: float, noise_max: float) -> InnerProductEnergy:
    """An inner-product energy with the teacher's network as its backbone.

    Give `trainable=teacher_weights` to `distill`, and a learning rate below the default's. Far from the data
    the energy need not be normalisable (see `InnerProductEnergy`); chains near them do not notice.

    Args:
        teacher: The teacher.
        data: Examples of shape `(num, *shape)`, for mean and spread; in the network's units.
        noise_min: Noise level at `t_min`, within what the teacher was trained on.
        noise_max: Noise level at `t_max`.

    Raises:
        ValueError: If data or noise levels make no sense.
    """
    data = np.asarray(data)
    if data.shape[1:] != teacher.shape or len(data) < 2 or not np.isfinite(data).all():
        raise ValueError(
            f"`student_of` expects at least 2 finite examples of shape (num, {str(teacher.shape)[1:-1]}); "
            f"got {data.shape}. {_faq.examples}"
        )
    if not 0 < noise_min < noise_max:
        raise ValueError(
            f"expected 0 < noise_min < noise_max; got {noise_min}, {noise_max}. {_faq.schedules}"
        )
    mean, scale = data.mean(0), float(np.sqrt(data.var(0).mean()))
    net = TeacherBackbone(teacher, jnp.asarray(mean), scale)
    schedule = VariancePreserving()
    times = [float(schedule.time(jnp.asarray(-2 * np.log(s)))) for s in (noise_min, noise_max)]
    variances = np.full(mean.size, scale**2)
    return InnerProductEnergy(net, mean, variances, schedule, *times)  # pyright: ignore


def teacher_weights(energy: InnerProductEnergy) -> tuple[Any, ...]:
    """Select the trainable parts of a `student_of`: the network and the energy's offset, no mean and no
    schedule.

    Args:
        energy: The student.
    """
    backbone: Any = energy.net
    parts = backbone.teacher.fn, backbone.teacher.params, energy.offset
    return tuple(
        part for part in parts if part is not None
    )  # `fit` replaces each, and None is nothing
