"""Every door that a seed enters by refuses what jax would wrap round to another seed."""

import numpy as np
import pytest

from dlm.build.run import RunConfig
from dlm.build.sampling import SamplingConfig
from dlm.data import ByteTokenizer, open_rows, open_source
from dlm.sampling.canvas import make_canvas
from dlm.seeds import check_seed


def canvas(seed):
  masks = np.full(2, 9)
  return make_canvas(
    [masks], [masks == 9], [0], slots=2, block=2, align="canvas", mask_id=9, seed=seed
  )


def rows(seed):
  sources = (("lists", 1.0, (("mode", "pad"),)),)
  return open_rows(sources, ByteTokenizer(), length=32, batch=1, seed=seed)


def training(seed):
  tables = {"objective": {"name": "mdlm"}, "optimizer": {"lr": 1e-3}, "data": {"length": 8}}
  tables["data"]["sources"] = (("lists", 1.0),)
  tables["checkpoint"] = {"keep_best": 0}
  return RunConfig.of(tables | {"seed": seed, "steps": 1, "batch": 1})


DOORS = {
  "canvas": canvas,
  "sampling": lambda seed: SamplingConfig(seed=seed),
  "training": training,
  "source": lambda seed: open_source("lists", seed=seed),
  "rows": rows,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 7])
def test_a_seed_that_would_be_another_is_refused(door, seed):
  with pytest.raises(ValueError, match=rf"^seed={seed} must be a whole number from 0 to 2\^32"):
    door(seed)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_the_largest_seed_is_one(door):
  door(2**32 - 1)


@pytest.mark.parametrize("seed", [1.0, True, "1", None])
def test_what_is_no_whole_number_is_refused_by_its_name(seed):
  with pytest.raises(ValueError, match=r"--seed=.* must be a whole number"):
    check_seed(seed, "--seed")
