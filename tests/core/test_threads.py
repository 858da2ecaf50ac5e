"""How the tasks of a solve are shared among threads."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmsolve import threads


@given(
    count=st.integers(1, 9),
    workers=st.integers(1, 4),
    steady=st.booleans(),
    worth=st.sampled_from([0.0, float("inf")]),
)
def test_results_are_in_the_order_of_tasks(count, workers, steady, worth):
    tasks = [(first, first + 1) for first in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_WORTH", worth)
        found = threads.in_threads(lambda *task: task, tasks, workers, steady=steady)
    assert found == tasks


@pytest.mark.parametrize(
    ("steady", "worth", "here"),
    [(True, float("inf"), 4), (True, 0.0, 1), (False, float("inf"), 0), (False, 0.0, 0)],
)
def test_steady_tasks_get_threads_once_they_are_worth_it(monkeypatch, steady, worth, here):
    """Counted by the tasks that the calling thread does itself."""
    monkeypatch.setattr(threads, "_WORTH", worth)
    idents = threads.in_threads(
        lambda *_: threading.get_ident(), [(at, at + 1) for at in range(4)], 2, steady=steady
    )
    assert idents.count(threading.get_ident()) == here
