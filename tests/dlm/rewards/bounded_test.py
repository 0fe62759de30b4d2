"""Programs that a model wrote are run within bounds; these harmless ones try to cross them."""

import pytest

from dlm.rewards import bounded

TRIES = {
  "raise": "raise ValueError",
  "exit": "raise SystemExit(0)",
  "interrupt": "raise KeyboardInterrupt",
  "leave": "import os\nos._exit(0)",
  "syntax": "def f(:",
  "memory": "x = bytearray(2**31)",
  "write outside": "open({outside!r}, 'w')",
  "make a folder": "import os\nos.mkdir({outside!r})",
  "remove": "import os\nos.remove({kept!r})",
  "network": "import socket\nsocket.socket()",
  "process": "import subprocess\nsubprocess.run(['true'])",
  "fork": "import os\nos.fork()",
}


@pytest.mark.parametrize("name", TRIES)
def test_what_is_refused(name, tmp_path):
  kept, outside = tmp_path / "kept", tmp_path / "made"
  kept.write_text("here")
  program = TRIES[name].format(outside=str(outside), kept=str(kept))
  assert not bounded.passes(program, memory=2**30)
  assert kept.read_text() == "here" and not outside.exists()


def test_time_ends():
  assert not bounded.passes("while True: pass", seconds=0.2)
  assert not bounded.passes("import time\ntime.sleep(60)", seconds=0.2)


def test_an_honest_program_passes_and_may_write_where_it_is(tmp_path):
  program = "import math, random, re, collections\nopen('here', 'w').write('x')\nprint('é')\n"
  assert bounded.passes(f"{program}assert open('here').read() == 'x'")
  assert not bounded.passes(f"{program}assert math.gcd(4, 6) == 3")
