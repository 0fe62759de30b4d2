"""Programs of a mesh that is not handed to them, as those of training are."""

import jax


def jitted(run, mesh=None):
  """`run`, compiled; with a mesh it finds that by `jax.sharding.get_abstract_mesh`."""
  if mesh is None:
    return jax.jit(run)

  def on_mesh(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return run(*args)

  return jax.jit(on_mesh)
