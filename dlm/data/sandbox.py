"""Renders a chat template that nobody vouches for, in a process of its own: run as a script.

stdin and stdout are JSON: {"template", "names", "variables"} becomes {"texts"} or {"error"}.
Jinja's sandbox keeps templates from Python's objects; the limits on memory and time, which hold for
the whole process, keep them from what loops, format widths and repeated strings could take.
"""

import datetime
import json
import resource
import sys
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**29  # bytes of address space
SECONDS = 5  # of processor time
LONGEST_TEXT = 2**20  # characters of one conversation


class Generation(Extension):
  """{% generation %} marks what an assistant writes, for losses; here it marks nothing."""

  tags = {"generation"}  # noqa: RUF012

  def parse(self, parser: Any) -> list:
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
  """What Hugging Face's templates expect to find."""
  made = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
  )
  made.globals["raise_exception"] = refuse
  made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  made.filters["tojson"] = tojson
  return made


def refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def tojson(
  value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any
) -> str:
  """Unlike Jinja's own, it escapes nothing for HTML."""
  return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def render(template: jinja2.Template, **variables: Any) -> str:
  parts, length = [], 0
  for part in template.generate(**variables):
    parts.append(part)
    length += len(part)
    if length > LONGEST_TEXT:
      raise jinja2.TemplateError(f"it writes more than {LONGEST_TEXT} characters")
  return "".join(parts)


def main() -> None:
  job = json.load(sys.stdin)
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  try:
    template = environment().from_string(job["template"])
    result = {
      "texts": [render(template, **{**job["names"], **variables}) for variables in job["variables"]]
    }
  except MemoryError:
    result = {"error": f"it needs more than {MEMORY} bytes of memory"}
  except Exception as error:  # whatever a template may do
    result = {"error": f"{type(error).__name__}: {error}"[:500]}
  json.dump(result, sys.stdout)


if __name__ == "__main__":
  main()
