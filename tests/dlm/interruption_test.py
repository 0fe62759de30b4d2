import os
import signal

import pytest

from dlm.interruption import interruption


def test_second_interrupt_ends_at_once():
  with pytest.raises(KeyboardInterrupt), interruption() as event:
    os.kill(os.getpid(), signal.SIGINT)
    assert event.is_set()
    os.kill(os.getpid(), signal.SIGINT)
