"""What an evaluation harness asks of a model: log-likelihoods of texts, and texts that end.

Works on strings, for checkpoints of any attention; `dlm.evaluation.harness` knows the harness.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlm import parallel
from dlm.build import Pretrained, SamplingConfig
from dlm.completions import template_of
from dlm.data.chat import Conversation, Quoted
from dlm.evaluation.answer_likelihood import CAUSAL, Answer, AnswerScore, AnswerScorer
from dlm.generate import Generator, Request, generator, shared_out

NEW_TOKENS = 256  # of an answer where neither the task nor the config says: the harness's own
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SHAPING = {"temperature": float, "top_p": float, "top_k": int}


@dataclasses.dataclass
class Counts:
  """What became of the requests so far."""

  truncated: int = 0  # prompts of which the beginning was left out
  answers: int = 0  # written
  tokens: int = 0
  forwards: int = 0  # that wrote them
  scored: int = 0
  scoring_forwards: int = 0


class Responder:
  """One checkpoint that answers, in batches of its own making: by length.

  Of several processes each does its share of the work, and all get all of it.

  Args:
    config: how to sample; what a request says of length, temperature, top_p and top_k comes first.
    estimator: of likelihoods: one of `answer_likelihood.ESTIMATORS`; auto: exact_count. Causal
      models are scored exactly whatever it is.
    draws, batch: see `AnswerScorer`; a batch of 0 is that of the config.
    max_length: slots of prompt and answer; 0: the checkpoint's.
    seed: of the estimator's noise; that of sampling is the config's.

  Raises:
    ValueError: the checkpoint's objective trains no model whose likelihood is known.
  """

  def __init__(
    self,
    trained: Pretrained,
    config: SamplingConfig,
    *,
    estimator: str = "auto",
    draws: int = 128,
    batch: int = 0,
    max_length: int = 0,
    seed: int = 0,
  ):
    facts, kind = trained.facts, trained.objective.kind
    causal = isinstance(facts.attention, CAUSAL)
    self.trained, self.seed = trained, seed
    self.max_length = max_length or facts.length
    self.config = dataclasses.replace(
      config, slots=config.slots or self.max_length, batch=batch or config.batch
    )
    self._generators: dict[tuple, Generator] = {}
    sampler = self._generator({})
    self.params, self.step = trained.on(sampler.mesh, self.config.weights)
    self.scorer = None
    if causal or kind.exact_count:
      self.scorer = AnswerScorer(
        trained.model,
        trained.tokenizer.mask_id,
        facts.attention,
        shift=facts.shift,
        estimator="exact_count" if estimator == "auto" else estimator,
        draws=draws,
        batch=batch or config.batch,
      )
    self._slots = self.max_length + causal  # a causal model never reads the last token
    self._quoted: Quoted | None = None
    self.counts = Counts()

  # -------------------------------------------------------------------------------------------
  # Likelihood

  def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[AnswerScore]:
    """Of continuations given contexts; nats."""
    return self._score([self.encode_pair(*pair) for pair in pairs])

  def rolling(self, texts: Sequence[str]) -> list[AnswerScore]:
    """Of whole texts, each token once, in windows that are as long as the model reads.

    The first token is given the token that begins texts, later windows the last one before them.
    """
    windows = [self.windows(self.encode(text)) for text in texts]
    scores = iter(self._score([each for of_text in windows for each in of_text]))
    return [_summed([next(scores) for _ in of_text]) for of_text in windows]

  def windows(self, ids: np.ndarray) -> list[Answer]:
    """Disjoint parts of a text, each behind one token; the last has as much context as fits."""
    room = self._slots - 1
    text = np.concatenate([[self.trained.tokenizer.bos_id], ids]).astype(np.int32)
    found = []
    for begin in range(1, len(text), room):
      end = min(begin + room, len(text))
      found.append((text[max(end - self._slots, 0) : begin], text[begin:end]))
    return found

  def encode_pair(self, context: str, continuation: str) -> Answer:
    """Ids; white space that ends a context begins the continuation, where tokenizers keep it.

    Too long a context loses its beginning. ValueError where the continuation alone is too long.
    """
    tokenizer = self.trained.tokenizer
    trimmed = context.rstrip()
    continuation = context[len(trimmed) :] + continuation
    if self._quoted is not None:
      continuation = self._quoted.quote(continuation)
    prompt = self.encode(trimmed)
    whole = self.encode(trimmed + continuation)
    answer = whole[len(prompt) :]
    if self.config.bos or not len(prompt):
      prompt = np.append(np.int32(tokenizer.bos_id), prompt)
    if len(answer) >= self._slots:
      raise ValueError(
        f"a continuation of {len(answer)} tokens does not fit behind a prompt in "
        f"max_length={self.max_length}: {continuation!r:.80}"
      )
    return self._truncated(prompt, self._slots - len(answer)), answer

  def _score(self, answers: Sequence[Answer]) -> list[AnswerScore]:
    if self.scorer is None:
      raise ValueError(
        f"{self.trained.directory}: no estimator of likelihood is known for answers of a model "
        f"trained by {self.trained.objective.name!r}"
      )
    own = self.scorer(self.params, [*parallel.share(answers)], seed=self.seed)
    scores = [AnswerScore(**x) for x in parallel.joined([dataclasses.asdict(x) for x in own])]
    self.counts.scored += len(scores)
    self.counts.scoring_forwards += sum(score.forwards for score in scores)
    return scores

  # -------------------------------------------------------------------------------------------
  # Texts

  def write(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What is written behind each context, up to the first of its stop strings.

    What is asked with a context: until (a string or several), max_gen_toks, temperature, top_p,
    top_k, do_sample. ValueError for other words: they would change what is measured unseen.
    """
    groups: dict[tuple, list[Request]] = collections.defaultdict(list)
    stops: list[list[str]] = []
    for i, (context, words) in enumerate(asked):
      words = dict(words)
      until = words.pop("until", None) or []
      stops.append([until] if isinstance(until, str) else list(until))
      if unknown := sorted({*words} - {*SHAPING, *LENGTHS, "do_sample"}):
        known = ", ".join(("until", "do_sample", *SHAPING, *LENGTHS))
        raise ValueError(f"generation_kwargs: unknown {unknown[0]!r}; known: {known}")
      groups[self._shaping(words)].append(self._request(i, context, words))
    texts = [""] * len(asked)
    for shaping, requests in groups.items():
      made = self._generator(dict(shaping))
      for done in shared_out(made, self.params, requests, seed=self.config.seed):
        cuts = [done.text.find(stop) for stop in stops[done.id] if stop and stop in done.text]
        texts[done.id] = done.text[: min(cuts)] if cuts else done.text
        self.counts.answers += 1
        self.counts.tokens += len(done.tokens)
        self.counts.forwards += sum(done.forwards.values())
    return texts

  def _shaping(self, words: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What a request says of drawing, where the config says otherwise."""
    said = {
      name: kind(words[name]) for name, kind in SHAPING.items() if words.get(name) is not None
    }
    if words.get("do_sample") is False:
      said = {"temperature": 0.0}
    return tuple((name, x) for name, x in said.items() if x != getattr(self.config, name))

  def _request(self, id: int, context: str, words: Mapping[str, Any]) -> Request:
    lengths = [int(words[name]) for name in LENGTHS if words.get(name) is not None]
    new = lengths[0] if lengths else self.config.max_new_tokens or NEW_TOKENS
    if not 0 < new < self.max_length:
      raise ValueError(
        f"max_gen_toks={new} must lie between 0 and max_length={self.max_length}, which holds the "
        "prompt too: set max_gen_toks (--config.max_new_tokens where the task says nothing)"
      )
    prompt = self.encode(context)
    if self.config.bos:
      prompt = np.append(np.int32(self.trained.tokenizer.bos_id), prompt)
    prompt = self._truncated(prompt, self.max_length - new)
    mask_id = self.trained.tokenizer.mask_id
    return Request.from_ids(id, context, prompt, mask_id, slots=self.max_length, max_new_tokens=new)

  def _generator(self, shaping: Mapping[str, Any]) -> Generator:
    name = tuple(shaping.items())
    if name not in self._generators:
      config = dataclasses.replace(self.config, **shaping)
      self._generators[name], _ = generator(config, self.trained)
    return self._generators[name]

  # -------------------------------------------------------------------------------------------
  # Ids

  def encode(self, text: str) -> np.ndarray:
    """Special tokens are text, but those that the chat template wrote."""
    if self._quoted is not None:
      return self._quoted.encode(text)
    return self.trained.tokenizer.encode(text)

  def _truncated(self, prompt: np.ndarray, room: int) -> np.ndarray:
    """The last `room` tokens, as the harness cuts."""
    self.counts.truncated += len(prompt) > room
    return prompt[-room:]

  def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
    """A conversation as the checkpoint's template writes it.

    Args:
      answer: ready for the assistant's answer; False: the last message is to be continued.
    """
    if self._quoted is None:
      self._quoted = Quoted(self.trained.tokenizer)
    (text,) = template_of(self.trained).write(
      [Conversation(list(messages))], self._quoted, asks=answer
    )
    if answer:
      return text
    last = self._quoted.quote(str(messages[-1]["content"])).strip()
    return text[: text.rindex(last) + len(last)]


def _summed(scores: Sequence[AnswerScore]) -> AnswerScore:
  """Of the parts of one text."""
  errors = [score.standard_error for score in scores]
  return AnswerScore(
    math.fsum(score.log_likelihood for score in scores),
    None if None in errors else math.sqrt(math.fsum(error**2 for error in errors)),
    sum(score.forwards for score in scores),
    all(score.greedy for score in scores),
  )
