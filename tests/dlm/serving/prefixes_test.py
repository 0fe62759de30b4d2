"""Pages of prefixes: what is found again, what is shared, what makes room."""

import numpy as np
import pytest

from dlm.serving.prefixes import PrefixCache


def filled(cache, ids, salt=""):
  """Numbers of the pages of a prompt, held ones first, as an engine would add them."""
  chain = cache.chain(np.array(ids), salt)
  numbers = cache.hold(chain)
  while chain.held < len(chain.names) and (number := cache.add(chain)) is not None:
    numbers.append(number)
  return chain, numbers


def test_the_longest_cached_prefix_is_found():
  cache = PrefixCache(pages=8, page=2)
  _, numbers = filled(cache, [1, 2, 3, 4, 5, 6, 7])
  assert len(set(numbers)) == 3 == len(cache), "the seventh token fills no page"
  other = cache.chain(np.array([1, 2, 3, 4, 9, 9, 7, 7]))
  assert cache.hold(other) == numbers[:2] and (cache.hits, cache.misses) == (2, 3 + 2)
  assert cache.hold(cache.chain(np.array([3, 4, 1, 2]))) == [], "a page is known with all before it"
  assert cache.hold(cache.chain(np.array([1]))) == []


def test_tenants_share_nothing():
  cache = PrefixCache(pages=8, page=2)
  filled(cache, [1, 2, 3, 4], salt="a")
  assert cache.hold(cache.chain(np.array([1, 2, 3, 4]), "b")) == []
  assert len(cache.hold(cache.chain(np.array([1, 2, 3, 4]), "a"))) == 2


def test_what_was_used_longest_ago_makes_room_and_chains_go_from_their_end():
  cache = PrefixCache(pages=3, page=1)
  for ids in ([1, 2], [3]):
    cache.release(filled(cache, ids)[0])
  cache.release(filled(cache, [4])[0])  # page 2 of the chain 1, 2 goes: 1 has a child until then
  assert [len(cache.hold(cache.chain(np.array(ids)))) for ids in ([1, 2], [3], [4])] == [1, 1, 1]


def test_pages_in_use_stay_and_without_room_nothing_is_added():
  cache = PrefixCache(pages=2, page=1)
  used, numbers = filled(cache, [1, 2])
  late, none = filled(cache, [3])
  assert none == [] and late.held == 0 and len(cache) == 2
  cache.release(late)
  cache.release(used)
  chain, again = filled(cache, [3])
  assert again == numbers[1:] and chain.held == 1
  assert filled(PrefixCache(pages=0, page=1), [1])[1] == []


def test_two_requests_that_fill_the_same_prompt_keep_it_once():
  cache = PrefixCache(pages=4, page=1)
  one, other = (cache.chain(np.array([1, 2])) for _ in range(2))
  assert cache.hold(one) == cache.hold(other) == []
  assert cache.add(one) is not None and cache.add(other) is None
  assert len(cache) == 1
  cache.release(other)
  cache.release(one)
  (page,) = cache._pages.values()
  assert page.users == 0


def test_a_hash_that_two_texts_share_is_no_hit():
  cache = PrefixCache(pages=4, page=1)
  chain, _ = filled(cache, [1])
  false = cache.chain(np.array([2]))
  false.names[0] = chain.names[0]
  assert cache.hold(false) == [] and cache.add(false) is None


@pytest.mark.parametrize("sizes", [(-1, 4), (4, 0)])
def test_sizes_that_cannot_be_are_refused(sizes):
  with pytest.raises(ValueError, match=f"pages={sizes[0]}, page={sizes[1]}"):
    PrefixCache(*sizes)
