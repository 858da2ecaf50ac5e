"""Fixtures of several files."""

import gc

import pytest
import torch
from greenlet import getcurrent, greenlet

from nmsolve.torch.calibration.suspended import Forward, _surroundings


def suspended():
    """Forwards that have begun, and neither ended nor been ended."""
    gc.collect()
    found = [g for g in gc.get_objects() if type(g) is greenlet]
    return [g for g in found if g and isinstance(getattr(g, "forward", None), Forward)]


@pytest.fixture
def nothing_is_left():
    """Of forwards that were under way, whether they ended or failed."""
    before = _surroundings()
    yield
    assert getcurrent().parent is None
    assert not suspended()
    assert _surroundings() == before
    callback = torch._C._dynamo.eval_frame.get_eval_frame_callback
    assert callback() is None
