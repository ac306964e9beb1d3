"""Particles spread over devices: clouds first, then the particles of a cloud."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import _faq
from .._typing import PyTree

__all__ = ["Spread", "blocks_over", "chains_over", "spread_over"]

_AXES = ("clouds", "particles")


class Spread:
    """How the particles of all clouds lie on devices: in blocks of equal size, one after the other.

    Each device steps its own particles. What belongs to a whole cloud, such as log weights and indices of
    parents, is on every device, and so is the model.
    """

    def __init__(self, devices: Sequence[Any], num_chains: int):
        rows = min(num_chains, len(devices))
        self.mesh = Mesh(np.asarray(devices, dtype=object).reshape(rows, -1), _AXES)

    def __eq__(self, other):
        return isinstance(other, Spread) and self.mesh == other.mesh

    def __hash__(self):
        return hash(self.mesh)

    @property
    def several_hosts(self) -> bool:
        """Whether devices of other processes are among them."""
        return len({device.process_index for device in self.mesh.devices.flat}) > 1

    def check_alone(self, **options: Any) -> None:
        """Refuse options that each host would follow at another level, so that they wait for each other.

        Raises:
            ValueError: If one is set and there are several hosts.
        """
        wanted = [name for name, value in options.items() if value is not None]
        if wanted and self.several_hosts:
            raise ValueError(
                f"`{wanted[0]}` is for devices of one host; got devices of several. Leave it out, or give "
                f"each host a run of its own, `devices=jax.local_devices()`. {_faq.devices}"
            )

    def of_one_host(self) -> "Spread":
        """The same, where results are read on one host.

        Raises:
            ValueError: If there are several.
        """
        if self.several_hosts:
            raise ValueError(
                "expected devices of one host; got devices of several. Only `nd.SMC` and `run_smc` spread "
                "one run over hosts: give each host its own chains or points, "
                f"`devices=jax.local_devices()`. {_faq.devices}"
            )
        return self

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays of a tree on every device; several hosts must hold the same numbers."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        arrays, rest = eqx.partition(tree, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))
        return eqx.combine(jax.tree.map(lambda leaf: jax.device_put(leaf, whole), arrays), rest)

    def whole(self, tree: PyTree) -> PyTree:
        """The same within a compiled program."""
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)

    def map(self, function: Callable, count: int, batch_size: int | None) -> PyTree:
        """`function` of `0, ..., count - 1`, each device in its block, so many at a time."""
        number = self.mesh.size
        each = count // number
        index = self.split(jnp.arange(count).reshape(number, each))
        size = each if batch_size is None else min(batch_size, each)
        both = jax.vmap(jax.vmap(function))
        if size == each:
            out = both(index)
        else:
            # Each batch has a part from every device; the last repeats some of its indices, and drops them.
            batches = -(-each // size)
            place = jnp.minimum(jnp.arange(batches * size), each - 1).reshape(batches, size)
            rows = jax.lax.map(lambda at: self.split(both(self.split(index[:, at]))), place)
            whole = lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(
                number, batches * size, *leaf.shape[3:]
            )[:, :each]
            out = jax.tree.map(whole, rows)
        return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), self.split(out))

    def by_cloud(self, tree: PyTree) -> PyTree:
        """Leaves with the axes of clouds and particles, each device with its own."""
        sharding = NamedSharding(self.mesh, PartitionSpec(*_AXES))
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)

    def split(self, tree: PyTree) -> PyTree:
        """The first axis over the devices."""
        sharding = NamedSharding(self.mesh, PartitionSpec(_AXES))
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)

    def gathered(self, tree: PyTree) -> PyTree:
        """Arrays that every process can read as a whole."""
        if not self.several_hosts:
            return tree

        def one(leaf):
            if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
                return leaf
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = one(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))

        return jax.tree.map(one, tree)


def chains_over(
    devices: Sequence[Any] | Mesh | None, num_chains: int, chains: PyTree, rest: PyTree
) -> tuple[PyTree, PyTree]:
    """Independent chains shared out over devices, and what they share on each of them.

    Args:
        devices: Devices or a mesh; `None` leaves all as it is.
        num_chains: A multiple of the number of devices.
        chains: Arrays with a leading axis of chains; others go to all devices.
        rest: Arrays that every chain needs.

    Raises:
        TypeError: If these are no devices.
        ValueError: If the chains cannot be shared out equally.
    """
    if devices is None:
        return chains, rest
    spread = spread_over(devices, num_chains, 1)
    assert spread is not None
    spread.of_one_host()
    sharding = NamedSharding(spread.mesh, PartitionSpec(_AXES[0]))

    def split(leaf):
        its_own = jnp.shape(leaf)[:1] == (num_chains,)
        return jax.device_put(leaf, sharding) if its_own else spread.everywhere(leaf)

    return jax.tree.map(split, chains), spread.everywhere(rest)


def spread_over(
    devices: Sequence[Any] | Mesh | None, num_chains: int, num_particles: int
) -> Spread | None:
    """The layout of some clouds on some devices; `None` for one device, JAX's own choice.

    Args:
        devices: Devices, or a mesh of them whose shape does not matter.
        num_chains: Number of clouds.
        num_particles: Particles a cloud.

    Raises:
        TypeError: If these are no devices.
        ValueError: If the clouds, or the particles of one, cannot be shared out equally.
    """
    if devices is None:
        return None
    several = _checked(devices)
    number = len(several)
    fits = num_chains % number == 0 or (
        number % num_chains == 0 and num_particles % (number // num_chains) == 0
    )
    if not fits:
        raise ValueError(
            f"expected clouds, or equal parts of a cloud, for each of {number} devices; got {num_chains} of "
            f"{num_particles} particles. Take a multiple of {number} clouds; or a number of clouds that "
            f"divides {number}, with particles that {number} over that number divides; or fewer "
            f"devices. {_faq.devices}"
        )
    return Spread(several, num_chains)


def blocks_over(devices: Sequence[Any] | Mesh | None, count: int, what: str) -> Spread | None:
    """The layout of independent things in equal blocks on some devices; `None` for one device.

    Args:
        devices: Devices, or a mesh of them whose shape does not matter.
        count: Number of things.
        what: In words.

    Raises:
        TypeError: If these are no devices.
        ValueError: If the things cannot be shared out equally.
    """
    if devices is None:
        return None
    several = _checked(devices)
    if count % len(several):
        raise ValueError(
            f"expected {what} in equal blocks for each of {len(several)} devices; got {count}. Take a "
            f"multiple of {len(several)}, or fewer devices. {_faq.devices}"
        )
    return Spread(several, 1).of_one_host()


def _checked(devices: Sequence[Any] | Mesh) -> list[Any]:
    """Devices in a list."""
    several = list(devices.devices.flat) if isinstance(devices, Mesh) else devices
    try:
        several = list(several)
    except TypeError:
        several = []
    if not several or not all(isinstance(device, jax.Device) for device in several):
        raise TypeError(
            "`devices` must be devices or a `jax.sharding.Mesh`, such as `jax.devices()`; got "
            f"{devices!r}. {_faq.devices}"
        )
    if len(set(several)) < len(several):
        raise ValueError(f"`devices` must differ from each other; got {several}. {_faq.devices}")
    return several
