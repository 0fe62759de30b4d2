"""Verdicts, answers and curves of the authors' evaluation code, from tests/conformance/graders."""

import numpy as np
import pytest

from dlm.data.sources import parallel_bench
from dlm.evaluation import parallelism, rouge
from dlm.evaluation.tasks import answers, code, lists, puzzles, sentences
from dlm.rewards import programs


def check_seeds(case):
  seeds = [parallel_bench.seed_of(name, offset) for name, offset in case.arg("names")]
  assert seeds == case.expected["seeds"]


def check_records(case):
  config, prompt = case.arg("config"), case.arg("prompt")
  found = parallel_bench.records(config)
  assert found == case.expected["samples"]
  messages = [parallel_bench.messages(record, prompt) for record in found]
  assert messages == case.expected["messages"]


# -------------------------------------------------------------------------------------------------
# Graders: (text, reference, strict, grammar) -> score, or scores by name.


def of_lists(rule):
  def score(text, reference, strict, grammar):
    found = lists.parse_list(text, strict)
    return float(found is not None and rule(found, reference))

  return score


def of_sentences(rule):
  """The reference is a sentence, or holds one and perhaps the word that is new."""

  def score(text, reference, strict, grammar):
    reference = reference if isinstance(reference, dict) else {"input": reference}
    given = sentences.words_of(reference["input"])
    return float(rule(sentences.words_of(text), given, reference.get("word")))

  return score


def plain(rule):
  return lambda text, reference, strict, grammar: float(rule(text, reference, strict))


GRADERS = {
  "list_match_score": of_lists(lambda found, said: lists.list_match(found, lists.parse_list(said))),
  "list_shuffle_score": of_lists(lambda found, of: lists.list_shuffle(found, of["input"])),
  "list_random_insert_score": of_lists(
    lambda found, of: lists.random_insert(found, of["input"], of["word"])
  ),
  "list_random_remove_score": of_lists(lambda found, of: lists.random_remove(found, of["input"])),
  "list_random_replace_score": of_lists(
    lambda found, of: lists.random_replace(found, of["input"], of["word"])
  ),
  "sentence_random_insert_score": of_sentences(lists.random_insert),
  "sentence_random_remove_score": of_sentences(
    lambda found, given, _: lists.random_remove(found, given)
  ),
  "sentence_random_replace_score": of_sentences(lists.random_replace),
  "latin_square_score": plain(lambda text, of, _: puzzles.latin_square(text, of["symbols"])),
  "domino_score": plain(
    lambda text, of, strict: puzzles.domino(text, of["length"], of["start"], strict)
  ),
  "math_op_score": plain(
    lambda text, of, strict: puzzles.arithmetic(text, int(of["result"]), strict)
  ),
  "sudoku_score": plain(puzzles.sudoku),
  "json_syntax_score": plain(lambda text, *_: sentences.json_syntax(text)),
  "text_to_regex_score": plain(
    lambda text, of, _: sentences.regex_tells(
      text, of["positive_examples"], of["negative_examples"]
    )
  ),
  "regex_match_score": lambda text, of, *_: {
    "score": float(sentences.matches(text, of["pattern"]))
  },
  "sentence_replace_all_with_unique_random_score": lambda text, of, *_: (
    sentences.occurrences_replaced(text, of["input"], of["word"], of["n_replace"])
  ),
  "sentence_to_words_score": lambda text, of, _, grammar: sentences.words_included(
    text, of["words"], grammar
  ),
  "startwith_score": lambda text, of, _, grammar: sentences.starts_with(
    text, of["startwith"], grammar
  ),
}


def check_verdicts(case):
  """The recorded grammar checker says one thing of every text but the empty one."""
  good, reference = case.arg("grammar_ok"), case.arg("reference")
  grade = GRADERS[case.arg("metric")]

  def scores(strict):
    return [
      grade(text, reference, strict, lambda text: bool(text) and good)
      for text in case.arg("predictions")
    ]

  by_name = scores(strict=False)
  assert by_name == case.expected["scores"]
  if isinstance(by_name[0], dict):
    means = {name: np.mean([each[name] for each in by_name]) for name in by_name[0]}
    assert not any(case.expected["scores_strict"] or ())
  else:
    strict = scores(strict=True)
    assert strict == case.expected["scores_strict"]
    means = {"score": np.mean(by_name), "score_strict": np.mean(strict)}
  # One grader of theirs returns a bool, which their own sum does not take.
  if not isinstance(case.expected["aggregate"], str):
    assert {name: 100 * mean for name, mean in means.items()} == pytest.approx(
      case.expected["aggregate"]
    )


# -------------------------------------------------------------------------------------------------


def check_aup(case):
  points = list(zip(case.arg("rho"), case.arg("y"), strict=True))
  y_max = case.arg("y_max")
  alpha = case.arg("alpha", parallelism.AUP_ALPHA)
  slack = case.arg("y_min_offset", parallelism.AUP_SLACK)
  if case.expected["error"]:
    with pytest.raises(ValueError, match="must stay within"):
      parallelism.aup(points, y_max, alpha, slack)
  else:
    found = parallelism.aup(points, y_max, alpha, slack)
    assert found == pytest.approx(case.expected["aup"], rel=1e-12)


def check_aup_weight(case):
  y_max, alpha = case.arg("y_max"), case.arg("alpha")
  found = [parallelism.aup_weight(y, y_max, alpha) for y in case.arg("y")]
  assert found == pytest.approx(case.expected["w"], rel=1e-12)


def pairs(case):
  return list(zip(case.arg("responses"), case.arg("references"), strict=True))


def check_gsm8k_lm_eval(case):
  task, asked = case.arg("task"), pairs(case)
  found = {
    "strict-match": [answers.lm_eval_strict(text, task) for text, _ in asked],
    "flexible-extract": [answers.lm_eval_flexible(text) for text, _ in asked],
  }
  for name, said in [*found.items()]:
    found[f"{name}_score"] = [
      float(answers.lm_eval_match(answer, reference))
      for answer, (_, reference) in zip(said, asked, strict=True)
    ]
  assert found == case.expected


def check_gsm8k_opencompass(case):
  asked = pairs(case)
  found = {"gold": [answers.gold_number(reference) for _, reference in asked]}
  for name in ("instruct", "base"):
    found[name] = [answers.opencompass_number(text, name == "base") for text, _ in asked]
    found[f"{name}_correct"] = [
      *map(answers.opencompass_match, found[name], found["gold"]),
    ]
  assert found == case.expected


def check_answer_parsers(case):
  asked = pairs(case)
  assert case.expected == {
    "gsm8k_hash": [answers.hash_number(text) for text, _ in asked],
    "boxed": [answers.boxed(text) for text, _ in asked],
    "boxed_equivalent_to_reference": [
      answers.equivalent(answers.boxed(text), reference) for text, reference in asked
    ],
    "sudoku": [answers.tagged(text) for text, _ in asked],
  }


def check_stop_cut(case):
  stops = case.arg("stops")
  assert [answers.cut_at_stops(text, stops) for text in case.arg("texts")] == case.expected["cut"]


def check_mbpp(case):
  assert [*map(code.mbpp_program, case.arg("responses"))] == case.expected["code"]


def check_humaneval(case):
  said = case.arg("responses")
  assert case.expected == {
    "instruct_v2": [programs.blocks(text)[0] for text in said],
    "base_internal_v2": [code.function_body(text) for text in said],
    "last_block_v3": [programs.blocks(text)[-1] for text in said],
  }


def check_fast_dllm(case):
  prompt, name = case.arg("prompt"), case.arg("entry_point")
  found = [code.fast_dllm_program(prompt, text, name) for text in case.arg("responses")]
  assert found == case.expected["code"]


def check_pass_at_k(case):
  n, k = case.arg("n"), case.arg("k")
  found = [code.pass_at_k(n, right, k) for right in case.arg("c")]
  np.testing.assert_allclose(found, case.outputs["pass_at_k"], rtol=1e-12, atol=1e-15)


def check_rouge(case):
  asked = list(zip(case.arg("predictions"), case.arg("references"), strict=True))
  found = {
    "rouge1": [rouge.rouge_n(text, reference, 1) for text, reference in asked],
    "rouge2": [rouge.rouge_n(text, reference, 2) for text, reference in asked],
    "rougeL": [rouge.rouge_l(text, reference) for text, reference in asked],
  }
  for name, scores in found.items():
    assert scores == pytest.approx(case.expected[name], rel=1e-12)


METHODS = {
  "pb_seed": check_seeds,
  "pb_generate": check_records,
  "pb_grade": check_verdicts,
  "aup_score": check_aup,
  "aup_weight": check_aup_weight,
  "gsm8k_lm_eval": check_gsm8k_lm_eval,
  "gsm8k_opencompass": check_gsm8k_opencompass,
  "d1_answer_parsers": check_answer_parsers,
  "stop_cut": check_stop_cut,
  "mbpp_opencompass": check_mbpp,
  "humaneval_opencompass": check_humaneval,
  "humaneval_fast_dllm": check_fast_dllm,
  "pass_at_k": check_pass_at_k,
  "rouge": check_rouge,
}
