"""The process that `bounded.py` starts, as a script: takes on its bounds, then runs stdin.

Linux holds time, memory, size of files and number of processes; where it has Landlock, writes
outside the folder, and where it allows name spaces, the network. An audit hook of Python refuses
the same and more on every system. It sees what Python does, so it comes with the others, not in
their place.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
import time

FILE = 2**24  # bytes of a file that it may write
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
# Landlock: system calls, and what is handled: all that changes a file or a folder, and TCP.
CREATE, ADD, RESTRICT, NO_NEW_PRIVILEGES = 444, 445, 446, 38
WRITES = sum(1 << bit for bit in (1, *range(4, 13)))
WRITES_OF_VERSION = {2: 1 << 13, 3: 1 << 14}  # links between folders; truncation
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
  "os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr",
  "os.rename", "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime",
}  # fmt: skip
REFUSED = (
  "socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.kill", "os.posix_spawn",
  "os.spawn", "os.system", "os.startfile", "pty.", "signal.pthread_kill",
)  # fmt: skip


def bound(folder: str, seconds: float, memory: int) -> None:
  library = ctypes.CDLL(None, use_errno=True)
  if sys.platform == "linux":
    library.unshare(NEW_USER | NEW_NETWORK)  # where it is not allowed, the hook remains
    _only_write_in(library, folder)
  whole = int(seconds) + 1
  for limit, most in (
    (resource.RLIMIT_AS, memory),
    (resource.RLIMIT_CPU, whole),
    (resource.RLIMIT_FSIZE, FILE),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_NPROC, 0),
  ):
    resource.setrlimit(limit, (most, most))
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  sys.addaudithook(lambda event, args: _check(event, args, folder))


def _only_write_in(library: ctypes.CDLL, folder: str) -> None:
  version = library.syscall(CREATE, None, 0, 1)
  if version < 1:
    return
  writes = WRITES + sum(bit for since, bit in WRITES_OF_VERSION.items() if version >= since)
  handled = struct.pack("QQ", writes, 3)[: 16 if version >= 4 else 8]  # 3: bind and connect
  rules = library.syscall(CREATE, handled, len(handled), 0)
  inside = os.open(folder, os.O_PATH | os.O_DIRECTORY)
  library.syscall(ADD, rules, 1, struct.pack("=Qi", writes, inside), 0)
  library.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
  library.syscall(RESTRICT, rules, 0)
  os.close(inside)
  os.close(rules)


def _check(event: str, args: tuple, folder: str) -> None:
  if event.startswith(REFUSED):
    raise PermissionError(f"{event} is refused")
  if event == "open":
    path, _, flags = args
    changed = [path] if isinstance(flags, int) and flags & WRITING else []
  else:
    changed = args if event in CHANGES else []
  for path in changed:
    if isinstance(path, str | bytes | os.PathLike):
      where = os.path.realpath(os.fsdecode(path))
      if where != folder and not where.startswith(folder + os.sep):
        raise PermissionError(f"{event} outside its folder is refused")


def main() -> None:
  told, seconds, memory = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
  program = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
  bound(os.getcwd(), seconds, memory)
  began = time.process_time()
  try:
    exec(compile(program, "program", "exec"), {"__name__": "program"})
  except BaseException:  # an exit and an interrupt are no success either
    os._exit(1)
  os.write(told, f"passed {time.process_time() - began}".encode())
  os._exit(0)


if __name__ == "__main__":
  main()
