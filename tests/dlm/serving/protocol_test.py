"""What a body becomes that no server is needed for."""

import pytest

from dlm.data import ByteTokenizer
from dlm.serving.protocol import Reader

BYTES = ByteTokenizer()


@pytest.mark.parametrize(
  ("body", "text"),
  [({"prompt": "ab"}, "ab"), ({"prompt": "a[[2]]b", "infill": True}, "ab"),
   ({"prompt": "a", "suffix": "b", "max_tokens": 2}, "ab")],
)  # fmt: skip
def test_every_text_begins_with_bos_where_the_config_says_so(body, text):
  reader = Reader(
    model="m", tokenizer=BYTES, template=None, slots=16, new=3, bos=True, top_p=1.0,
    start_within=1.0, end_within=1.0,
  )  # fmt: skip
  request = reader.completion(body, "").asks[0].request
  assert request.tokens[~request.open].tolist() == [BYTES.bos_id, *text.encode()]
