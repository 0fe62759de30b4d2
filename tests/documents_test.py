"""What the documents name is there: files, sections, configs, and the commands' mains."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ("README.md", "METHODS.md", "BENCHMARKS.md")
FOLDERS = "dlm|kernels_pallas|tests|experiments|configs|colab|findings"
PATH = re.compile(rf"\b(?:{FOLDERS})/[\w./-]*\w")
FILE_ALONE = re.compile(r"`(\w+\.py)`")  # one more of the folder that was named last
MODULE = re.compile(r"python -m (experiments[.\w]*)")
LINK = re.compile(r"\]\((\w*\.md|)#([\w-]+)\)")
SHORT = re.compile(r"`(train|sample) (\w+)")  # METHODS.md says what they stand for


def read(name: str) -> str:
  return (ROOT / name).read_text()


def files_in(text: str) -> list[str]:
  found, folder = [], ""
  for line in text.splitlines():
    for match in re.finditer(f"{PATH.pattern}|{FILE_ALONE.pattern}", line):
      path = f"{folder}/{match.group(1)}" if match.group(1) else match.group()
      found.append(path)
      folder = path.rpartition("/")[0]
  found += [f"{module.replace('.', '/')}.py" for module in MODULE.findall(text)]
  found += [f"configs/{kind}/{name}.py" for kind, name in SHORT.findall(text)]
  return [path for path in found if not path.endswith("/X.py")]  # X stands for any


def anchors(text: str) -> set[str]:
  """As GitHub makes them of headings."""
  titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_a_document_names_exist(name):
  assert [path for path in files_in(read(name)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_sections(name):
  links = LINK.findall(read(name))
  assert [link for link in links if link[1] not in anchors(read(link[0] or name))] == []


def test_a_missing_file_or_section_is_seen():
  text = "`dlm/objectives/mdlm.py`, `nothing.py`; `train none`; `python -m experiments.no`\n# A, b"
  missing = [path for path in files_in(text) if not (ROOT / path).exists()]
  assert missing == ["dlm/objectives/nothing.py", "experiments/no.py", "configs/train/none.py"]
  assert anchors(text) == {"a-b"}
