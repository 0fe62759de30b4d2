"""Sentences with words that are given, sentences to be put differently, talks to be summed up.

What ParallelBench (2510.04767) asks of texts, on items of our own that a rule can grade: each
answer names what a right text must hold. Records: `dlm/data/sources/parallel_bench.py`.
"""

import random
from collections.abc import Mapping
from typing import Any

# Nouns that are often told together.
THEMES = tuple(
  words.split()
  for words in (
    "dog park ball tree leash bench grass puppy",
    "cook kitchen soup spoon onion oven plate pepper",
    "teacher school book pencil lesson chalk pupil desk",
    "sailor ship wind harbour rope anchor wave island",
    "doctor nurse patient clinic pill fever bandage cough",
    "farmer field cow fence barn tractor hay seed",
    "pianist concert stage violin singer drum tune choir",
    "train station ticket platform luggage driver track tunnel",
    "painter brush canvas colour museum frame portrait sketch",
    "judge court lawyer witness trial verdict jury crime",
    "winter snow glove sledge ice scarf mountain chimney",
    "spider forest owl river moss fox mushroom path",
  )
)
# Each inner tuple says the same in several words.
PEOPLE = (
  ("teacher", "instructor"), ("doctor", "physician"), ("lawyer", "attorney"), ("cook", "chef"),
  ("child", "kid"), ("writer", "author"), ("customer", "client"), ("thief", "robber"),
)  # fmt: skip
QUALITIES = (
  ("tired", "weary"), ("clever", "smart"), ("rich", "wealthy"), ("polite", "courteous"),
  ("brave", "courageous"), ("famous", "renowned"), ("quiet", "silent"), ("sad", "unhappy"),
)  # fmt: skip
DEEDS = (
  ("bought", "purchased"), ("repaired", "fixed"), ("lost", "mislaid"), ("chose", "selected"),
  ("showed", "displayed"), ("hid", "concealed"), ("got", "received"), ("cleaned", "washed"),
)  # fmt: skip
THINGS = (
  ("car", "automobile"), ("picture", "painting"), ("present", "gift"), ("stone", "rock"),
  ("bicycle", "bike"), ("sofa", "couch"), ("coat", "jacket"), ("cup", "mug"),
)  # fmt: skip
PLACES = ("station", "market", "library", "harbour", "museum", "theatre", "bakery", "castle")
TIMES = (
  "yesterday",
  "today",
  "recently",
  "on Monday",
  "on Friday",
  "in May",
  "in winter",
  "at noon",
)
NAMES = (
  "Ada",
  "Ben",
  "Cleo",
  "Dan",
  "Emma",
  "Finn",
  "Gina",
  "Hugo",
  "Iris",
  "Jan",
  "Kira",
  "Leo",
  "Mina",
  "Omar",
  "Rosa",
  "Sven",
)
PLANS = (
  "play chess", "go swimming", "see a film", "paint the fence", "bake a cake", "visit Grandmother",
  "study chemistry", "fly kites",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("nine", "ten", "three", "four", "five", "six")


def words_to_sentence(draw: random.Random, config: Mapping[str, Any]) -> dict[str, Any]:
  """Words of one theme are easy, of two medium; hard ones are of a theme each."""
  count = config["count"]
  themes = draw.sample(THEMES, {"easy": 1, "medium": 2, "hard": count}[config["difficulty"]])
  words: list[str] = []
  for i in range(count):
    theme = themes[i % len(themes)]
    words.append(draw.choice([word for word in theme if word not in words]))
  draw.shuffle(words)
  *most, last = (f"the {word}" for word in words)
  example = f"In this story we meet {', '.join(most)} and {last}."
  return {
    "input": {"words": ", ".join(words)},
    "answer": {"words": words, "example": example},
    "metadata": {"length": 1},
  }


def paraphrase(draw: random.Random, _: Mapping[str, Any]) -> dict[str, Any]:
  """A sentence; each of its facts may be told by any word of a tuple."""
  facts = [draw.choice(each) for each in (QUALITIES, PEOPLE, DEEDS, THINGS)]
  place, time = draw.choice(PLACES), draw.choice(TIMES)
  (quality, other_quality), (who, other_who), (did, other_did), (what, other_what) = facts
  text = f"The {quality} {who} {did} the {what} near the {place} {time}."
  example = (
    f"{time[0].upper()}{time[1:]}, near the {place}, the {other_who}, who was {other_quality},"
    f" {other_did} the {other_what}."
  )
  kept = [*facts, (place,), (time.split()[-1],)]
  return {
    "input": {"text": text},
    "answer": {"text": text, "facts": kept, "example": example},
    "metadata": {"length": 1},
  }


def summary(draw: random.Random, _: Mapping[str, Any]) -> dict[str, Any]:
  """Two people agree on a day after another one did not suit them."""
  (one, other), (first, day) = draw.sample(NAMES, 2), draw.sample(DAYS, 2)
  plan, hour, place = draw.choice(PLANS), draw.choice(HOURS), draw.choice(PLACES)
  text = "\n".join((
    f"{one}: Hi {other}, how are you? Do you want to {plan} on {first}?",
    f"{other}: I would love to, but {first} is bad for me, I have to work late.",
    f"{one}: What a pity. Would {day} suit you better?",
    f"{other}: Yes, {day} is fine. Let us meet near the {place}.",
    f"{one}: Good, at {hour} then. I am looking forward to it!",
  ))  # fmt: skip
  example = f"{one} and {other} will {plan} on {day} and meet at {hour} near the {place}."
  facts = [(one,), (other,), (plan.split()[-1],), (day,), (place,), (hour,)]
  return {
    "input": {"text": text},
    "answer": {"text": text, "facts": facts, "example": example},
    "metadata": {"length": 1},
  }
