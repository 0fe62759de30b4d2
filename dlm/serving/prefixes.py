"""Which prefixes of prompts have cached keys: bookkeeping on the host; the keys are elsewhere.

A prompt is cut into pages of equally many tokens. A page is known by a hash of its tokens and of
all before it, so equal prefixes of different requests are one chain of pages.
"""

import collections
import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass
class _Page:
  """A page that holds keys."""

  number: int  # where they are
  name: bytes
  parent: bytes | None
  tokens: bytes
  users: int = 0
  children: int = 0


@dataclasses.dataclass
class Chain:
  """A request's full pages, by name, and how many of the first it holds in the cache."""

  names: list[bytes]
  tokens: list[bytes]
  held: int = 0
  missed: int = 0  # when the cache was last asked


class PrefixCache:
  """Pages by hash chain, counted by use; the one that was used longest ago makes room.

  A page that is in use stays, and so does one that others follow: a chain is given up from its
  end. Tokens are compared too, so two texts of one hash are not taken for each other.

  Args:
    pages: how many there are to hold keys.
    page: tokens of one.
  """

  def __init__(self, pages: int, page: int):
    if pages < 0 or page < 1:
      raise ValueError(
        f"prefix cache: pages={pages}, page={page} must not be negative, or 0 tokens"
      )
    self.page = page
    self.hits = self.misses = 0  # pages
    self._free = list(range(pages))[::-1]
    self._pages: collections.OrderedDict[bytes, _Page] = collections.OrderedDict()  # by last use

  def __len__(self) -> int:
    return len(self._pages)

  def chain(self, ids: np.ndarray, salt: str = "") -> Chain:
    """The full pages of `ids`. Prompts of different `salt` (tenants) share nothing."""
    name, names, tokens = hashlib.blake2b(salt.encode(), digest_size=16).digest(), [], []
    for first in range(0, len(ids) - self.page + 1, self.page):
      own = np.asarray(ids[first : first + self.page], "<i4").tobytes()
      name = hashlib.blake2b(name + own, digest_size=16).digest()
      names.append(name)
      tokens.append(own)
    return Chain(names, tokens)

  def hold(self, chain: Chain) -> list[int]:
    """Numbers of the chain's first pages, as far as they are cached. They stay until `release`.

    It may be asked again, when others may have brought more of them.
    """
    before = chain.held
    for name, tokens in zip(chain.names[chain.held :], chain.tokens[chain.held :], strict=True):
      page = self._pages.get(name)
      if page is None or page.tokens != tokens:
        break
      self._use(page)
      chain.held += 1
    missed = len(chain.names) - chain.held
    self.hits += chain.held - before
    self.misses += missed - chain.missed
    chain.missed = missed
    return [self._pages[name].number for name in chain.names[: chain.held]]

  def add(self, chain: Chain) -> int | None:
    """Where to put the keys of the first page that the chain does not hold; it holds it then.

    None: it is cached already, by another request since, or no page can be given up.
    """
    name, tokens = chain.names[chain.held], chain.tokens[chain.held]
    if name in self._pages or not self._room():
      return None
    parent = chain.names[chain.held - 1] if chain.held else None
    if parent is not None:
      self._pages[parent].children += 1
    self._pages[name] = page = _Page(self._free.pop(), name, parent, tokens)
    self._use(page)
    chain.held += 1
    return page.number

  def release(self, chain: Chain) -> None:
    """The request needs its pages no longer; they stay cached while there is room."""
    for name in chain.names[: chain.held]:
      self._pages[name].users -= 1
    chain.held = 0

  def _use(self, page: _Page) -> None:
    page.users += 1
    self._pages.move_to_end(page.name)

  def _room(self) -> bool:
    if self._free:
      return True
    unused = (page for page in self._pages.values() if not (page.users or page.children))
    if (page := next(unused, None)) is None:
      return False
    del self._pages[page.name]
    if page.parent is not None:
      self._pages[page.parent].children -= 1
    self._free.append(page.number)
    return True
