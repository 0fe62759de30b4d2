#!/bin/sh
# outlines-core: over single bytes the automaton of an expression ends where its first match ends.
#
# Guess: Index("(ab)+", vocabulary) accepts ab, abab, ababab, as the expression does.
# Seen (outlines-core 0.2.14): after "ab" the one state left is final and leads nowhere but to the
#   end-of-text token, so "abab" is not accepted. Nothing warns. With something fixed behind the
#   repetition, "(ab)+!", all of it is accepted.
# It matters where vocabularies hold single bytes or characters (byte-level models, tests, automata
#   that are read out to be walked over other tokens): generated text is cut at the first match.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile outlines-core==0.2.14

"$folder/venv/bin/python" <<'PYTHON'
from importlib.metadata import version

from outlines_core import Index, Vocabulary

END = 256
BYTES = Vocabulary(END, {bytes([byte]): [byte] for byte in range(256)})


def accepts(pattern, text):
  index = Index(pattern, BYTES)
  moves, state = index.get_transitions(), index.get_initial_state()
  for byte in text.encode():
    state = moves.get(state, {}).get(byte)
    if state is None:
      return False
  return state in index.get_final_states()


print("outlines-core", version("outlines-core"))
print("expected: (ab)+ accepts ab and abab")
seen = {text: accepts("(ab)+", text) for text in ("ab", "abab")}
behind = {text: accepts("(ab)+!", text) for text in ("ab!", "abab!")}
print(f"seen:     {seen}; with an end behind it {behind}")
assert behind == {"ab!": True, "abab!": True}
assert seen == {"ab": True, "abab": False}, "repetitions are whole now: this finding is out of date"
PYTHON
