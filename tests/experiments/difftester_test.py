"""The command that samples several texts of one prompt together."""

import pytest

from tests.experiments import mains, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny.trained(tmp_path_factory.mktemp("runs") / "mdlm", length=32)


def run(tmp_path, folder, *arguments):
  return mains.run(
    tmp_path, "experiments/difftester.py", "--config=configs/sample/difftester.py",
    f"--checkpoint={folder}", "--prompt=```python\n", "--config.max_new_tokens=12", *arguments,
  )  # fmt: skip


def test_samples_go_to_the_screen(tmp_path, folder):
  done = run(tmp_path, folder, "--samples=2", "--config.stop=never")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.endswith("[2 samples, 6 forwards]\n")  # bytes at random are no code


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--language=cobol", "language='cobol' is not one of python, java, cpp"),
    ("--samples=0", "batch=0 must be at least 1"),
    ("--config.block=8", "block=8 must hold all new tokens"),
    ("--config.cache.name=dual", "difftester needs cache 'none'"),
    ("--every=0", "every=0 must be at least 1"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, folder, argument, message):
  done = run(tmp_path, folder, argument)
  assert (done.returncode, done.stdout) == (2, "") and message in done.stderr
