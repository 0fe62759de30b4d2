#!/bin/sh
# jax: asking whether to stop for preemption can stop all Python threads until others answer.
#
# Guess: multihost_utils.reached_preemption_sync_point, which a training loop asks after each step,
#   either answers at once or lets other Python threads run while it waits, as other calls that wait
#   for the network do (jax.block_until_ready, a barrier of the coordination service).
# Seen (jax 0.10.2 and 0.12.0, two processes on CPU): after a SIGTERM it waits until every process has answered,
#   with Python's lock held. With the other process stopped for 3 seconds, a thread that ticks each
#   10 ms stood still for 2 of them, from when the signal was noticed. While jax waits for the same
#   process at a barrier of the coordination service, the thread ticks on.
# It matters to all who do work in threads beside a loop that saves at preemption: data loaders,
#   signs of life, proxies. A proxy in Python that carries jax's own traffic to the service locks up
#   for good, as ours did.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jax==0.10.2

cat > "$folder/process.py" <<'PYTHON'
import os
import signal
import sys
import threading
import time

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

own, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, own)
client = distributed.global_state.client
longest = 0.0


def tick():
  global longest
  last = time.monotonic()
  while True:
    time.sleep(0.01)
    now = time.monotonic()
    longest = max(longest, now - last)
    last = now


if own == 1:  # is stopped for 3 seconds, twice
  client.key_value_set("other", str(os.getpid()))
  client.blocking_key_value_get("stopped", 60_000)
  client.wait_at_barrier("plain", 60_000)
else:
  other = int(client.blocking_key_value_get("other", 60_000))
  threading.Thread(target=tick, daemon=True).start()

  def away():
    os.kill(other, signal.SIGSTOP)
    # Not by Python's clock, which may stand still: a child wakes the other.
    os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", f"sleep 3; kill -CONT {other}")

  begun = time.monotonic()
  away()
  client.key_value_set("stopped", "once")
  client.wait_at_barrier("plain", 60_000)
  waited, plain = time.monotonic() - begun, longest
  away()
  os.kill(os.getpid(), signal.SIGTERM)
step, longest, begun = 0, 0.0, time.monotonic()
while not multihost_utils.reached_preemption_sync_point(step):
  step += 1
  time.sleep(0.01)
if own == 0:
  print(f"barrier: waited {waited:.1f} s, Python stood still for at most {plain:.1f} s")
  print(f"preemption: took {time.monotonic() - begun:.1f} s, Python stood still for {longest:.1f} s")
  as_found = waited > 2 and plain < 0.5 and longest > 1
  sys.stdout.flush()
client.wait_at_barrier("end", 60_000)
jax.distributed.shutdown()
if own == 0 and not as_found:
  raise SystemExit("CHANGED: other threads ran, or nothing waited")
PYTHON

port=$("$folder/venv/bin/python" -c \
  'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu
"$folder/venv/bin/python" -c 'import jax; print("jax", jax.__version__)'
"$folder/venv/bin/python" "$folder/process.py" 1 "$port" 2> /dev/null &
"$folder/venv/bin/python" "$folder/process.py" 0 "$port" 2> /dev/null
wait
echo "as found"
