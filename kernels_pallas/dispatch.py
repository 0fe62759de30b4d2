"""Chooses an implementation: the fastest that this machine has, or what is named.

A name is one of NAMES, or several with commas between them, of which the first that can is called:
an op need not have all of them, so "gpu,xla" serves a whole model. Off CPUs a log says what each op
runs as, and why not as what comes before.
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

NAMES = ("reference", "xla", "tpu", "gpu")

# The GPU kernels compile for an H100 and agree with the reference in interpret mode, but no GPU has
# run them yet: until `experiments.device_check` shows there that they are right and win, they must
# be named.
_ORDER = {
  "cpu": ("xla", "reference"),
  "gpu": ("xla", "reference"),
  "tpu": ("tpu", "xla", "reference"),
}
_ORDER_ELSEWHERE = ("xla", "reference")

_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)

_HOPPER = r"\bG?H(20|100|200|800)\b"  # in the names of its devices


def backend() -> str:
  """What the program at hand is compiled for: the platform of the mesh that is set (which may be
  of devices that are not here, see `aot`), or else jax's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def _kind() -> str:
  device = jax.sharding.get_abstract_mesh().abstract_device
  return (jax.devices()[0] if device is None else device).device_kind


def _refused(name: str) -> str | None:
  """Why an implementation cannot be meant for the device at hand; None: it can."""
  if name != "gpu" or backend() != "gpu" or re.search(_HOPPER, _kind()):
    return None
  return f"the kernels are for Hopper, not for {_kind()}"


@functools.cache  # once for all layers and programs
def _tell(op: str, name: str, kind: str, reasons: tuple[str, ...]) -> None:
  _log.info("%s on %s runs as %s", op, kind, "; not as ".join((name, *reasons)))


def check(implementation: str | None) -> None:
  """ValueError where a name is unknown, before anything is traced."""
  unknown = [] if implementation is None else set(implementation.split(",")) - set(NAMES)
  if unknown:
    raise ValueError(f"{implementation=} must name some of {', '.join(NAMES)}")


def run(
  op: str, table: Mapping[str, Callable], implementation: str | None, *args: Any, **kwargs: Any
) -> Any:
  """Calls `table[implementation](*args, **kwargs)`; None: the first of the backend's that can.

  An implementation raises NotImplementedError where it does not serve these arguments or this
  machine (the next is tried) and ValueError where the caller is mistaken (nothing else is tried).

  Raises:
    ValueError: a name is unknown, or the op has none of those that are named.
    NotImplementedError: none can; the message holds the reason of each.
  """
  if implementation is None:
    names = _ORDER.get(backend(), _ORDER_ELSEWHERE)
  else:
    check(implementation)
    names = implementation.split(",")
    if not set(names) & set(table):
      raise ValueError(f"{op}: {implementation=} is not one of {', '.join(table)}")
  served, reasons = [name for name in names if name in table], []
  for name in served:
    reason = _refused(name)
    if reason is None:
      try:
        result = table[name](*args, **kwargs)
      except NotImplementedError as error:
        reason = error
      else:
        if backend() != "cpu":
          _tell(op, name, _kind(), tuple(reasons))
        return result
    reasons.append(f"{name}: {reason}")
  raise NotImplementedError(
    f"{op}: {implementation=} serves no such call on {backend()!r}. " + "; ".join(reasons)
  )
