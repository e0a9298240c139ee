"""Where a run's arrays lie: the devices, and rules for examples, batches and models.

The devices are a mesh of one ``data`` axis. Examples lie on every device, a batch is
split along its examples, and a model lies on every device or, to hold a larger one, is
split (FSDP): each array of parameters and optimiser along the largest axis that the
devices divide. The compiler does the rest, so that batch statistics, losses and
gradients are those of the whole batch. With one device nothing is placed.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.errors import UserError
from experiments.models.foreign import is_key


@dataclasses.dataclass(frozen=True)
class Devices:
    """Several devices, or one.

    Attributes:
      mesh: of the ``data`` axis; None for one device.
      shard_parameters: split a model over the devices.
    """

    mesh: Mesh | None = None
    shard_parameters: bool = False

    @classmethod
    def choose(cls, count: int | None, shard_parameters: bool) -> Self:
        """So many devices of this machine, or all of all processes.

        Raises:
          UserError: there are not so many, or a model is to be split over one.
        """
        here = jax.devices()
        if count is not None and not 1 <= count <= len(here):
            raise UserError(
                f"--devices {count}: there {_are(len(here))} here. Give a number up to "
                "that, or leave it out for all."
            )
        if count is not None and jax.process_count() > 1:
            raise UserError(
                f"--devices {count}: several processes run on all of their devices. "
                "Leave it out."
            )
        chosen = here[:count]
        if len(chosen) > 1:
            axes = (AxisType.Auto,)
            mesh = jax.make_mesh((len(chosen),), ("data",), axes, devices=chosen)
            return cls(mesh, shard_parameters)
        if shard_parameters:
            raise UserError(
                "--shard-parameters: a model is split over several devices, and there "
                f"{_are(1)} in use. Leave it out, or run where there are more."
            )
        return cls()

    @property
    def count(self) -> int:
        """Number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    def everywhere(self, tree: Any) -> Any:
        """Arrays, whole on every device."""
        return self._put(tree, lambda leaf: PartitionSpec())

    def split(self, batch: Any) -> Any:
        """A batch, split along its examples; whole where they do not divide."""
        return self._put(batch, self._by_example)

    def place(self, tree: Any) -> Any:
        """Parameters, and what is like them, by the rule for a model."""
        return self._put(tree, self._by_largest_axis)

    def gather(self, array: np.ndarray, indices: np.ndarray) -> Any:
        """A batch of examples that lie on the host; each device is given its own."""
        if self.mesh is None:
            return array[indices]
        shape = (*np.shape(indices), *array.shape[1:])
        sharding = NamedSharding(self.mesh, self._by_example(indices))

        def read(part):
            assert part is not None
            return array[indices[part[0]]]

        return jax.make_array_from_callback(shape, sharding, read)

    def _put(self, tree: Any, spec: Any) -> Any:
        if self.mesh is None:
            return tree
        mesh = self.mesh

        return jax.tree.map(
            lambda leaf: _lay(leaf, NamedSharding(mesh, spec(leaf))), tree
        )

    def finite(self, tree: Any) -> bool:
        """Whether all numbers of a tree are finite."""
        leaves = jax.tree.leaves(tree)
        if self.mesh is None:
            return all(np.isfinite(leaf).all() for leaf in leaves)
        return bool(_finite(leaves))

    def _by_example(self, leaf: Any) -> PartitionSpec:
        shape = np.shape(leaf)
        divides = bool(shape) and shape[0] and shape[0] % self.count == 0
        return PartitionSpec("data") if divides else PartitionSpec()

    def _by_largest_axis(self, leaf: Any) -> PartitionSpec:
        shape = np.shape(leaf)
        axes = [i for i, n in enumerate(shape) if n and n % self.count == 0]
        if not (self.shard_parameters and axes):
            return PartitionSpec()
        return PartitionSpec(*[None] * max(axes, key=shape.__getitem__), "data")


ONE = Devices()
"""Nothing is placed."""


def _lay(leaf: Any, sharding: NamedSharding) -> Any:
    """A leaf as it is to lie; in a program a constraint."""
    if isinstance(leaf, Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
    if jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    # The same in every process, which need not ask the others for it.
    if is_key(leaf):
        data, kind = (
            _lay(jax.random.key_data(leaf), sharding),
            jax.random.key_impl(leaf),
        )
        return jax.random.wrap_key_data(data, impl=kind)
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)


@jax.jit
def _finite(leaves: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _are(count: int) -> str:
    return "is 1 device" if count == 1 else f"are {count} devices"
