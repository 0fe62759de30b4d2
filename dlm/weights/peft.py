"""Adapters in PEFT's layout, in and out: adapter_config.json and adapter_model.safetensors.

  adapter = open_adapter(directory)                        adapter_config.json alone
  params = merged(adapter, family, model, params)          into the weights: all that PEFT does
  config, own = separate(adapter, family, model)           beside them: pairs of A and B alone
  fill(folder, family, model, own, base=..., ours=...)

The file counts, not the config: PEFT saves what it trained, and what its target_modules missed on
one model or caught on another is seen in the tensors alone. The config gives scales, and names what
the file must hold. Stored beside the pairs may be biases of adapted modules, whole copies of others
(modules_to_save), embeddings, and DoRA's magnitudes (2402.09353).

An adapter that acts on mask tokens alone is no notion of PEFT's: ours says so, and for which mask
token and objective, under the key "dlm" of adapter_config.json. Other readers ignore the key, and
would apply the adapter to every token.
"""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dlm import files as disk
from dlm.checksums import not_finite
from dlm.models import lora
from dlm.models.bind import bind
from dlm.models.config import ModelConfig
from dlm.models.lora import LoraConfig
from dlm.types import Array, Params
from dlm.weights import files, names
from dlm.weights.configs import ADAPTER
from dlm.weights.families import FAMILIES
from dlm.weights.fields import typed
from dlm.weights.files import WeightsError, listed
from dlm.weights.names import TensorPart

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
OURS = "dlm"  # the key that other readers ignore

# What changes numbers and is not read, each with the values under which it does nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
  "lora_bias": (False,),
  "layer_replication": ([],),
  "target_parameters": ([],),
  "trainable_token_indices": ([], {}),
  "alora_invocation_tokens": ([],),
  "use_qalora": (False,),
  "use_bdlora": (),
  "arrow_config": (),
  "kasa_config": (),
  "monteclora_config": (),
  # The others change the base model as they begin.
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}

# What else is read is of these types, or null.
TYPES: Mapping[str, tuple[type, ...]] = {
  "target_modules": (str, list),
  "exclude_modules": (str, list),
  "alpha_pattern": (dict,),
  "layers_to_transform": (int, list),
  "use_rslora": (bool,),
  "use_dora": (bool,),
}

# Ends of tensors; what stands before is the module.
PAIR = (".lora_A.weight", ".lora_B.weight")
EMBEDDING_PAIR = (".lora_embedding_A", ".lora_embedding_B")
MAGNITUDE = ".lora_magnitude_vector"
COPIES = (".base_layer.weight", ".base_layer.bias", ".weight", ".bias")


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A directory whose adapter_config.json is read, and no tensor yet."""

  directory: pathlib.Path
  config: Mapping[str, Any]
  drafts: bool = False  # on while the model drafts for itself, off else: only its reader knows

  @property
  def ours(self) -> Mapping[str, Any] | None:
    """What `fill` was told beside the adapters; None: PEFT wrote it."""
    return self.config.get(OURS)

  @property
  def gated(self) -> bool:
    return bool(self.ours and self.ours.get("gated"))

  @property
  def beside(self) -> bool:
    """It stands beside the parameters, and is not merged."""
    return self.gated or self.drafts

  def scale(self, module: str, rank: int) -> float:
    """s of s B A: alpha is not scaled with a rank of its own."""
    alpha = self.config.get("lora_alpha")
    for key, value in (self.config.get("alpha_pattern") or {}).items():
      if self._fits(re.match, rf"(.*\.)?({key})$", module):
        alpha = value
        break
    alpha = typed("lora_alpha", alpha, float)
    return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

  def names(self, key: str, module: str, linear: bool) -> bool:
    """Whether target_modules or exclude_modules, `key`, names the module."""
    said = self.config.get(key) or []
    if said == "all-linear":
      return linear
    if isinstance(said, str):
      return self._fits(re.fullmatch, said, module)
    return any(module == each or module.endswith(f".{each}") for each in said)

  def _fits(self, match: Callable, pattern: str, module: str) -> bool:
    try:
      return match(pattern, module) is not None
    except re.error as error:
      raise WeightsError(f"{self.directory / ADAPTER}: {pattern!r:.80}: {error}") from error


def open_adapter(directory: str | pathlib.Path) -> Adapter:
  """Reads adapter_config.json.

  Raises:
    WeightsError: there is none, it is of another method than LoRA, or asks for what is not done.
  """
  directory = pathlib.Path(directory)
  path = directory / ADAPTER
  if not path.is_file():
    raise WeightsError(f"{directory} is no adapter: it holds no {ADAPTER}")
  config = files.read_json(path)
  if config.get("peft_type") != "LORA":
    raise WeightsError(
      f"{path}: peft_type={config.get('peft_type')!r:.40} is not read, only 'LORA'"
    )
  for key, idle in REFUSED.items():
    value = config.get(key)
    if value is not None and not any(value == x and type(value) is type(x) for x in idle):
      raise WeightsError(f"{path}: {key}={value!r:.80} is not supported")
  for key, kinds in TYPES.items():
    if (value := config.get(key)) is not None and type(value) not in kinds:
      raise WeightsError(f"{path}: {key}={value!r:.80} is of another type than PEFT's")
  ours = config.get(OURS)
  if ours is not None and (
    not isinstance(ours, dict) or not isinstance(ours.get("facts"), dict) or "objective" not in ours
  ):
    raise WeightsError(f"{path}: {OURS}={ours!r:.80} must hold gated, facts and objective")
  return Adapter(directory, config)


# ---------------------------------------------------------------------------------------------
# Reading


@dataclasses.dataclass
class _Module:
  """What the file holds of one module of the base model, as stored."""

  pair: tuple[np.ndarray, np.ndarray] | None = None  # [R, in], [out, R]
  magnitude: np.ndarray | None = None
  copies: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # by "weight", "bias"


def _modules(adapter: Adapter, parts: Mapping[str, list[TensorPart]]) -> dict[str, _Module]:
  """Everything in the file, by module; WeightsError where it is not this model's."""
  path = adapter.directory / TENSORS
  if not path.is_file():
    raise WeightsError(f"{adapter.directory} holds no {TENSORS}; nothing else is read")
  stored = files.read_header(path)
  found: dict[str, _Module] = collections.defaultdict(_Module)
  halves: dict[str, dict[bool, np.ndarray]] = collections.defaultdict(dict)
  unknown = []
  with files.Reader() as reader:
    for name, tensor in stored.items():
      module, end = _split(name)
      kind = "bias" if end.endswith("bias") else "weight"
      if f"{module}.{kind}" not in parts:
        unknown.append(f"+ {name} {list(tensor.shape)}")
        continue
      if tensor.dtype not in ("F32", "BF16", "F16"):
        raise WeightsError(f"{path}: tensor {name} is of dtype {tensor.dtype}, not F32/BF16/F16")
      value = reader.read(name, tensor, tuple(slice(0, size) for size in tensor.shape))
      value = np.asarray(value, np.float32)
      if not np.isfinite(value).all():
        raise WeightsError(f"{path}: tensor {name} is not finite")
      if end in PAIR + EMBEDDING_PAIR:
        halves[module][end in (PAIR[1], EMBEDDING_PAIR[1])] = value
      elif end == MAGNITUDE:
        found[module].magnitude = value
      else:
        found[module].copies[kind] = value
  if unknown:
    raise WeightsError(
      f"{path}: {len(unknown)} tensors are of no module of this model:\n{listed(unknown)}"
    )
  for module, pair in halves.items():
    found[module].pair = _checked_pair(path, module, pair, parts[f"{module}.weight"])
  _check_copies(path, found, parts)
  _check_magnitudes(adapter, found, parts)
  _check_complete(adapter, found, parts)
  return dict(found)


def _split(name: str) -> tuple[str, str]:
  """A tensor's module and the end that says what it is of it."""
  for end in (*PAIR, *EMBEDDING_PAIR, MAGNITUDE, *COPIES):
    if name.startswith(PREFIX) and name.endswith(end):
      return name.removeprefix(PREFIX).removesuffix(end), end
  return name, ""


def _shape(parts: list[TensorPart]) -> tuple[int, ...]:
  rows, *rest = parts[-1].layout.stored
  return parts[-1].row + rows, *rest


def _checked_pair(
  path: pathlib.Path, module: str, pair: Mapping[bool, np.ndarray], parts: list[TensorPart]
) -> tuple[np.ndarray, np.ndarray]:
  """A [R, in] and B [out, R] of a weight [out, in]; of an embedding [V, D] it is [R, V], [D, R]."""
  shape = _shape(parts)
  if len(pair) < 2 or len(shape) != 2:
    raise WeightsError(f"{path}: {module} needs both lora_A and lora_B, of a matrix")
  a, b = pair[False], pair[True]
  fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] > 0
  whole = shape[::-1] if parts[0].path == "embed" else shape
  if not fits or (b.shape[0], a.shape[1]) != whole:
    raise WeightsError(
      f"{path}: {module} has A {list(a.shape)} and B {list(b.shape)} beside a weight {list(shape)}"
    )
  return a, b


def _check_copies(
  path: pathlib.Path, found: Mapping[str, _Module], parts: Mapping[str, list[TensorPart]]
) -> None:
  for module, held in found.items():
    for kind, value in held.copies.items():
      if value.shape != (shape := _shape(parts[f"{module}.{kind}"])):
        raise WeightsError(
          f"{path}: the {kind} of {module} is {list(value.shape)}, the model's {list(shape)}"
        )


def _check_magnitudes(
  adapter: Adapter, found: Mapping[str, _Module], parts: Mapping[str, list[TensorPart]]
) -> None:
  """DoRA is of all pairs or of none, and of projections alone."""
  dora = bool(adapter.config.get("use_dora"))
  for module, held in found.items():
    has, paired = held.magnitude is not None, held.pair is not None
    fits = has and paired and held.magnitude.shape == held.pair[1].shape[:1]
    fits = fits and all(part.layout.flip for part in parts[f"{module}.weight"])
    if (dora and paired) != fits or has != fits:
      raise WeightsError(
        f"{adapter.directory}: use_dora={dora}, and {module} has {'a' if has else 'no'} "
        f"lora_magnitude_vector{' that does not fit' if has and dora else ''}"
      )


def _check_complete(
  adapter: Adapter, found: Mapping[str, _Module], parts: Mapping[str, list[TensorPart]]
) -> None:
  """WeightsError where adapter_config.json names modules that the file lacks."""
  layers = adapter.config.get("layers_to_transform")
  layers = [layers] if isinstance(layers, int) else layers
  missing = []
  for name, of_it in parts.items():
    module, _, end = name.rpartition(".")
    if end != "weight" or len(_shape(of_it)) != 2 or (module in found and found[module].pair):
      continue
    number = re.search(r"\.(\d+)\.", module)
    if layers is not None and (number is None or int(number[1]) not in layers):
      continue
    linear = of_it[0].path not in ("embed", "unembed")  # what "all-linear" means
    if adapter.names("target_modules", module, linear) and not adapter.names(
      "exclude_modules", module, linear
    ):
      missing.append(f"- {module}")
  if missing:
    raise WeightsError(
      f"{adapter.directory} lacks the pairs of {len(missing)} modules that target_modules names:\n"
      f"{listed(missing)}"
    )


def _parts(family: str, model: ModelConfig) -> dict[str, list[TensorPart]]:
  """What each tensor of the base model is made of."""
  found: dict[str, list[TensorPart]] = collections.defaultdict(list)
  for part in names.parts(FAMILIES[family].table, _shapes(model), model):
    found[part.name].append(part)
  return dict(found)


@functools.cache  # to trace a model takes most of the time of reading an adapter
def _shapes(model: ModelConfig) -> Mapping[str, tuple[int, ...]]:
  """Of the parameters, by path."""
  tree = nn.unbox(bind(model).abstract())
  return {path: leaf.shape for path, leaf in names.paths(tree).items()}


# ---------------------------------------------------------------------------------------------
# Pairs on our axes


@dataclasses.dataclass
class _Pairs:
  """All A and B of one parameter; stacked, of the largest rank, zeros where there are none."""

  a: np.ndarray  # [stack..., in..., R]
  b: np.ndarray  # [stack..., R, out...]
  adapted: np.ndarray  # bool [stack...]
  magnitude: np.ndarray | None  # [stack..., out...]


def _rank(modules: Mapping[str, _Module]) -> int:
  return max((held.pair[0].shape[0] for held in modules.values() if held.pair), default=0)


def _pairs(
  adapter: Adapter,
  modules: Mapping[str, _Module],
  parts: Mapping[str, list[TensorPart]],
  shapes: Mapping[str, tuple[int, ...]],
  unit: float = 1.0,
) -> dict[str, _Pairs]:
  """By path of the parameter; B times the module's scale over `unit`."""
  rank = _rank(modules)
  found: dict[str, _Pairs] = {}
  for module, held in modules.items():
    if held.pair is None:
      continue
    a, b = held.pair
    own = a.shape[0]
    b = b * np.float32(adapter.scale(module, own) / unit)
    for part in parts[f"{module}.weight"]:
      layout, rows = part.layout, slice(part.row, part.row + part.layout.stored[0])
      inward, outward = a, b[rows]
      if part.path == "embed":
        outward = b
      elif not layout.flip:  # our axes are the stored ones: [out, in]
        inward, outward = b[rows].T, a.T
      shape, cut = shapes[part.path], len(part.at) + len(layout.groups[layout.flip])
      stack, inner, outer = shape[: len(part.at)], shape[len(part.at) : cut], shape[cut:]
      if part.path not in found:
        found[part.path] = _Pairs(
          a=np.zeros((*shape[:cut], rank), np.float32),
          b=np.zeros((*stack, rank, *outer), np.float32),
          adapted=np.zeros(stack, bool),
          magnitude=None if held.magnitude is None else np.ones((*stack, *outer), np.float32),
        )
      pairs = found[part.path]
      pairs.a[part.at][..., :own] = inward.T.reshape(*inner, own)
      pairs.b[part.at][:own] = outward.T.reshape(own, *outer)
      pairs.adapted[part.at] = True
      if held.magnitude is not None:
        pairs.magnitude[part.at] = held.magnitude[rows].reshape(outer)
  return found


def separate(adapter: Adapter, family: str, model: ModelConfig) -> tuple[LoraConfig, Params]:
  """The adapters as they stand beside the kernels, float32, on the host, and their config.

  Modules of smaller rank are filled up with zeros, those without an adapter are zeros, and scales
  that differ are in B: the model computes the same.

  Raises:
    WeightsError: it holds more than pairs of the projections in `dlm.models.lora`, or is damaged.
  """
  parts, shapes = _parts(family, model), _shapes(model)
  modules = _modules(adapter, parts)
  more = [
    module
    for module, held in modules.items()
    if held.copies
    or held.magnitude is not None
    or not all(_is_projection(part.path) for part in parts[f"{module}.weight"])
  ]
  if more or not modules:
    raise WeightsError(
      f"{adapter.directory} must hold pairs of projections alone, to stand beside the weights; "
      f"other modules: {listed(more, ', ') or 'none, nor any pair'}"
    )
  targets = {part.path.split("/")[-2] for module in modules for part in parts[f"{module}.weight"]}
  config = LoraConfig(
    rank=_rank(modules),
    alpha=typed("lora_alpha", adapter.config.get("lora_alpha"), float),
    targets=tuple(name for name in lora.PROJECTIONS if name in targets),
    rslora=bool(adapter.config.get("use_rslora")),
    gated=adapter.gated,
  )
  pairs = _pairs(adapter, modules, parts, shapes, unit=config.scale)
  tree = lora.adapters(nn.unbox(bind(dataclasses.replace(model, lora=config)).abstract()))
  own = {}
  for path, leaf in names.paths(tree).items():
    above, _, name = path.rpartition("/")
    pair = pairs.get(f"{above}/kernel")  # None: a stack of layers that has none
    held = np.zeros(leaf.shape, np.float32) if pair is None else getattr(pair, name[-1])
    own[path] = held
  return config, jax.tree.unflatten(jax.tree.structure(tree), own.values())


def _is_projection(path: str) -> bool:
  above, _, name = path.removesuffix("/kernel").rpartition("/")
  return above.endswith(("layers/attention", "layers/mlp")) and name in lora.PROJECTIONS


# ---------------------------------------------------------------------------------------------
# Merging


def merged(adapter: Adapter, family: str, model: ModelConfig, params: Params) -> Params:
  """The parameters with the adapter in them, each of the dtype and where it was.

  Raises:
    WeightsError: the adapter is not of this model, is damaged, or is gated.
  """
  if adapter.gated:
    raise WeightsError(f"{adapter.directory} is gated: it acts on mask tokens, not in the weights")
  parts, shapes = _parts(family, model), _shapes(model)
  modules = _modules(adapter, parts)
  pairs = _pairs(adapter, modules, parts, shapes)
  copied = {part.path: None for m, held in modules.items() for kind in held.copies
            for part in parts[f"{m}.{kind}"]}  # fmt: skip
  if model.tied and "embed" in {*pairs, *copied}:
    raise WeightsError(
      f"{adapter.directory} changes the embedding of a model whose head is the same matrix: PEFT "
      "applies it to the lookup alone, and weights cannot"
    )
  leaves = names.paths(params)
  for module, held in modules.items():
    for kind, value in held.copies.items():
      for part in parts[f"{module}.{kind}"]:
        piece = value[part.row : part.row + part.layout.stored[0]]
        piece = piece.T if part.layout.flip else piece
        ours = np.ascontiguousarray(piece).reshape(shapes[part.path][len(part.at) :])
        where = leaves[part.path].sharding
        put = _replaced(leaves[part.path], ours, np.array(part.at, np.int32))
        leaves[part.path] = jax.device_put(put, where)
  for path, pair in pairs.items():
    where = leaves[path].sharding
    arrays = pair.a, pair.b, pair.adapted, pair.magnitude
    leaves[path] = jax.device_put(_with_pairs(leaves[path], *arrays), where)
  out = jax.tree.unflatten(jax.tree.structure(params), leaves.values())
  if leaf := not_finite(out):
    raise WeightsError(f"{adapter.directory}: parameter {leaf} is not finite when merged")
  return out


@jax.jit
def _replaced(leaf: Array, value: Array, at: Array) -> Array:
  return leaf.at[tuple(at)].set(value.astype(leaf.dtype))


@jax.jit
def _with_pairs(leaf: Array, a: Array, b: Array, adapted: Array, magnitude: Array | None) -> Array:
  wide = leaf.astype(jnp.float32) + lora.product(a, b, stack=adapted.ndim)
  if magnitude is not None:  # DoRA: what makes an output has a direction, and this length
    inward = tuple(range(adapted.ndim, a.ndim - 1))
    length = jnp.sqrt(jnp.square(wide).sum(inward, keepdims=True))
    turned = jnp.expand_dims(magnitude, inward) * wide / length
    wide = jnp.where(jnp.expand_dims(adapted, range(adapted.ndim, wide.ndim)), turned, wide)
  return wide.astype(leaf.dtype)


# ---------------------------------------------------------------------------------------------
# Writing


def fill(
  folder: pathlib.Path,
  family: str,
  model: ModelConfig,
  own: Params,
  *,
  base: str,
  ours: Mapping[str, Any],
  dtype: str | None = None,
) -> None:
  """Writes both files into a folder that is being made.

  Args:
    own: `lora.adapters` of the parameters of `model`.
    base: what adapter_config.json names as the base model.
    ours: facts and objective, as `Adapter.ours` gives them back.
    dtype: of the tensors, "float32" or "bfloat16"; None: as they are.

  Raises:
    ValueError: the family has no such projection, or stores several in one matrix.
    WeightsError: an adapter is not finite.
  """
  if leaf := not_finite(own):
    raise WeightsError(f"adapter {leaf} is not finite; nothing is written")
  config, table, leaves = model.lora, FAMILIES[family].table, names.paths(own)
  kernels = {f"{path.rpartition('/')[0]}/kernel" for path in leaves}
  nameless = [path for path in kernels if names.rule(table, path) is None]
  if nameless:
    raise ValueError(f"family {family!r} has no tensor for {', '.join(sorted(nameless))}")
  shapes = {path: shape for path, shape in _shapes(model).items() if path in kernels}
  tensors: dict[str, np.ndarray] = {}
  for part in names.parts(table, shapes, model):
    above = part.path.removesuffix("kernel")
    a, b = (np.asarray(jax.device_get(leaves[above + name])) for name in (lora.A, lora.B))
    module = PREFIX + part.name.removesuffix(".weight")
    if module + PAIR[0] in tensors or part.row:
      raise ValueError(f"family {family!r} stores query, key and value in one matrix, {part.name}")
    kind = jnp.dtype(dtype or a.dtype)
    pair = a[part.at].reshape(-1, config.rank).T, b[part.at].reshape(config.rank, -1).T
    for end, value in zip(PAIR, pair, strict=True):
      tensors[module + end] = np.ascontiguousarray(value).astype(kind)
  said = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "inference_mode": True,
    "r": config.rank,
    "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
    "lora_dropout": 0.0,
    "use_rslora": config.rslora,
    "bias": "none",
    "target_modules": _targets(table, kernels),
    OURS: {"gated": config.gated, **ours},
  }
  try:
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
  except SafetensorError as error:
    raise disk.of_system(error, folder / TENSORS) or error from error
  disk.write_json(folder / ADAPTER, said)


def _targets(table: names.NameTable, kernels: set[str]) -> list[str] | str:
  """Ends of the modules' names; a pattern of whole names, where others end so too."""
  adapted = {names.rule(table, path)[0].removesuffix(".weight") for path in kernels}
  ends = {module.rpartition(".")[2] for module in adapted}
  others = {template.removesuffix(".weight") for template, _ in table.values()} - adapted
  if not any(module.rpartition(".")[2] in ends for module in others):
    return sorted(ends)
  return "|".join(re.escape(module).replace(r"\{i\}", r"\d+") for module in sorted(adapted))
