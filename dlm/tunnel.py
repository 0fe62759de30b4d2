"""A program: a way to jax's coordination service that jax's client never sees break off.

`python tunnel.py HOST:PORT` prints the port of this machine where it listens, and carries what
comes there to the service and back. A line on its standard input says that the client is watched by
others: then it prints `gone` where the service breaks off, and leaves the client's connections
open; before that it closes them, and the client tries again. It ends with its standard input.

A program, not a thread of the client's process: there jax may wait for the service while it holds
Python's lock (`reached_preemption_sync_point`, jax 0.10.2 to 0.12.0), which no other thread would
get to carry what jax waits for.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

START = 300  # seconds within which the service must have come up


def main(host: str, port: int) -> None:
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # its client may outlive them
    signal.signal(number, signal.SIG_IGN)
  near, watched = socket.create_server(("127.0.0.1", 0)), threading.Event()
  threading.Thread(target=_accept, args=(near, (host, port), watched), daemon=True).start()
  print(near.getsockname()[1], flush=True)
  for _ in sys.stdin:
    watched.set()


def _accept(server: socket.socket, far: tuple[str, int], watched: threading.Event) -> None:
  while True:
    near, _ = server.accept()
    threading.Thread(target=_carry, args=(near, far, watched), daemon=True).start()


def _carry(near: socket.socket, address: tuple[str, int], watched: threading.Event) -> None:
  """From one end to the other and back, until the service breaks off."""
  far = _reached(address)
  if far is not None:
    threading.Thread(target=_pump, args=(near, far), daemon=True).start()
    _pump(far, near)
    if watched.is_set():
      with contextlib.suppress(OSError):  # the client has gone, too
        os.write(1, b"gone\n")
      threading.Event().wait()
  near.close()


def _reached(address: tuple[str, int]) -> socket.socket | None:
  """The service, which may come up later than its clients."""
  end = time.monotonic() + START
  while time.monotonic() < end:
    try:
      return socket.create_connection(address)
    except OSError:
      time.sleep(0.1)
  return None


def _pump(source: socket.socket, target: socket.socket) -> None:
  with contextlib.suppress(OSError):
    while data := source.recv(2**16):
      target.sendall(data)


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]))
