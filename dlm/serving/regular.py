"""Compiles a regular expression that nobody vouches for, in a process of its own: run as a script.

stdin and stdout are JSON: {"regex"} or {"schema"}, a JSON schema, becomes {"start", "edges",
"ends"} or {"error"}. Edges are [state, byte, next state], over the bytes of UTF-8; a text may end
where the byte 0 leads to one of the ends, and holds none itself. Short expressions may have huge
automata; the limits on memory and time, which hold for the whole process, keep the server from
those.
"""

import json
import resource
import sys

from outlines_core import Index, Vocabulary, json_schema

MEMORY = 2**29  # bytes of address space
SECONDS = 2  # of processor time
END, NONE = "\\x00", 256  # the library asks for a token that ends texts; ours is a byte


def compiled(job: dict[str, str]) -> dict:
  pattern = job.get("regex")
  if pattern is None:
    pattern = json_schema.build_regex_from_schema(job["schema"])
  bytes_ = Vocabulary(NONE, {bytes([byte]): [byte] for byte in range(256)})
  # With the end as a byte no text ends within another: the library would lose what follows there.
  index = Index(f"(?:{pattern}){END}", bytes_)
  edges = [
    [state, byte, after]
    for state, row in index.get_transitions().items()
    for byte, after in row.items()
    if byte != NONE
  ]
  return {"start": index.get_initial_state(), "edges": edges, "ends": [*index.get_final_states()]}


def main() -> None:
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
  try:
    result = compiled(json.load(sys.stdin))
  except Exception as error:
    result = {"error": str(error)}
  json.dump(result, sys.stdout)


if __name__ == "__main__":
  main()
