"""ROUGE (Lin, 2004): how many words or runs of words a text shares with a reference, stemmed.

The rules of Google's package rouge-score with its stemmer on. That package is not used: it comes
without a wheel and needs nltk for one class, the stemmer below.
"""

import collections
import itertools
import re
from collections.abc import Callable

VOWELS = frozenset("aeiou")
# Words that the rules would spoil.
IRREGULAR = {
  "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "innings": "inning",
  "outings": "outing", "cannings": "canning",
} | {word: word for word in (
  "sky", "news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed",
)}  # fmt: skip
SUFFIXES_2 = {
  "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble",
  "alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate",
  "ator": "ate", "alism": "al", "iveness": "ive", "fulness": "ful", "ousness": "ous",
  "aliti": "al", "iviti": "ive", "biliti": "ble", "fulli": "ful",
}  # fmt: skip
SUFFIXES_3 = {
  "icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": "",
}  # fmt: skip
SUFFIXES_4 = (
  "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
  "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


def words(text: str) -> list[str]:
  """Letters and digits in lower case; words of more than three are stemmed."""
  found = re.findall("[a-z0-9]+", text.lower())
  return [stem(word) if len(word) > 3 else word for word in found]


def rouge_n(text: str, reference: str, n: int) -> float:
  """F-measure of the runs of `n` words that both hold."""
  ours, theirs = _runs(text, n), _runs(reference, n)
  return _f_measure((ours & theirs).total(), ours.total(), theirs.total())


def recall_n(text: str, reference: str, n: int) -> float:
  """Share of the reference's runs of `n` words that a text holds; 0 where it has none."""
  theirs = _runs(reference, n)
  return (_runs(text, n) & theirs).total() / max(theirs.total(), 1)


def _runs(text: str, n: int) -> collections.Counter:
  said = words(text)
  return collections.Counter(zip(*(said[i:] for i in range(n)), strict=False))


def rouge_l(text: str, reference: str) -> float:
  """F-measure of the longest sequence of words that both hold in this order, gaps allowed."""
  ours, theirs = words(text), words(reference)
  row = [0] * (len(theirs) + 1)
  for word in ours:
    above = row
    row = [0]
    for j, other in enumerate(theirs):
      row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
  return _f_measure(row[-1], len(ours), len(theirs))


def _f_measure(shared: int, ours: int, theirs: int) -> float:
  if not shared:
    return 0.0
  precision, recall = shared / ours, shared / theirs
  return 2 * precision * recall / (precision + recall)


# ---------------------------------------------------------------------------------------------
# Porter's stemmer (1980) with the amendments of its author's later C code and of nltk


def stem(word: str) -> str:
  """What a lower-case English word is without its endings."""
  if word in IRREGULAR:
    return IRREGULAR[word]
  if len(word) <= 2:
    return word
  word = _past_and_gerund(_plural(word))
  if word.endswith("y") and len(word) > 2 and _is_consonant(word, len(word) - 2):
    word = word[:-1] + "i"
  word = _long_suffix(word)
  word = _swap(word, SUFFIXES_3, lambda stem, _: _measure(stem) > 0)
  word = _swap(
    word,
    dict.fromkeys(sorted(SUFFIXES_4, key=len, reverse=True), ""),
    lambda stem, suffix: _measure(stem) > 1 and (suffix != "ion" or stem.endswith(("s", "t"))),
  )
  return _last_letters(word)


def _plural(word: str) -> str:
  if word.endswith("ies") and len(word) == 4:
    return word[:-1]
  return _swap(word, {"sses": "ss", "ies": "i", "ss": "ss", "s": ""}, lambda *_: True)


def _past_and_gerund(word: str) -> str:
  if word.endswith("ied"):
    return word[:-1] if len(word) == 4 else word[:-2]
  if word.endswith("eed"):
    return word[:-1] if _measure(word[:-3]) > 0 else word
  for suffix in ("ed", "ing"):
    if word.endswith(suffix) and _has_vowel(root := word.removesuffix(suffix)):
      break
  else:
    return word
  if root.endswith(("at", "bl", "iz")):
    return root + "e"
  if len(root) > 1 and root[-1] == root[-2] and _is_consonant(root, len(root) - 1):
    return root if root[-1] in "lsz" else root[:-1]
  return root + "e" if _measure(root) == 1 and _ends_short(root) else root


def _long_suffix(word: str) -> str:
  if word.endswith("alli") and _measure(word[:-4]) > 0:
    return _long_suffix(word[:-2])
  if word.endswith("logi"):
    return word[:-1] if _measure(word[:-3]) > 0 else word
  return _swap(word, SUFFIXES_2, lambda stem, _: _measure(stem) > 0)


def _last_letters(word: str) -> str:
  if word.endswith("e"):
    size = _measure(word[:-1])
    if size > 1 or (size == 1 and not _ends_short(word[:-1])):
      word = word[:-1]
  return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _swap(word: str, suffixes: dict[str, str], allowed: Callable[[str, str], bool]) -> str:
  """By the first suffix that fits; where it is not allowed, no other is tried."""
  for suffix, other in suffixes.items():
    if word.endswith(suffix):
      root = word.removesuffix(suffix)
      return root + other if allowed(root, suffix) else word
  return word


def _is_consonant(word: str, at: int) -> bool:
  if word[at] == "y":
    return at == 0 or not _is_consonant(word, at - 1)
  return word[at] not in VOWELS


def _has_vowel(word: str) -> bool:
  return not all(_is_consonant(word, i) for i in range(len(word)))


def _measure(word: str) -> int:
  """How often a consonant follows a vowel."""
  kinds = [_is_consonant(word, i) for i in range(len(word))]
  return sum(not a and b for a, b in itertools.pairwise(kinds))


def _ends_short(word: str) -> bool:
  """Consonant, vowel, consonant, as in "hop"; or a vowel and a consonant alone, as in "at"."""
  kinds = [_is_consonant(word, i) for i in range(len(word))]
  if len(word) == 2:
    return kinds == [False, True]
  return kinds[-3:] == [True, False, True] and word[-1] not in "wxy"
