"""Methods of energies and schedules as programs: compiled once a class, the object is an argument."""

import equinox as eqx

energy_at = eqx.filter_jit(lambda energy, x, t: energy.energy(x, t))
score_at = eqx.filter_jit(lambda energy, x, t: energy.score(x, t))
denoised_at = eqx.filter_jit(lambda energy, x, t: energy.denoise(x, t))
log_density_at = eqx.filter_jit(lambda energy, u, t: energy.log_density(u, t))
log_densities_at = eqx.filter_jit(
    eqx.filter_vmap(lambda energy, u, t: energy.log_density(u, t), in_axes=(None, 0, None))
)
moments_at = eqx.filter_jit(lambda energy, t: energy.moments(t))
draws_at = eqx.filter_jit(
    eqx.filter_vmap(lambda energy, key, t: energy.draw(key, t), in_axes=(None, 0, None))
)
time_of = eqx.filter_jit(lambda schedule, log_snr: schedule.time(log_snr))
kernel_of = eqx.filter_jit(lambda schedule, t: schedule(t))
