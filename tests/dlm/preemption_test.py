import os
import signal

import pytest

from dlm.preemption import stop_signal


def test_second_interrupt_ends_at_once(capfd):
  with pytest.raises(KeyboardInterrupt), stop_signal() as event:
    os.kill(os.getpid(), signal.SIGINT)
    assert event.is_set()
    os.kill(os.getpid(), signal.SIGINT)
  assert capfd.readouterr().err.startswith("asked to stop: ")
