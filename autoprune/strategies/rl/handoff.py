"""Turns a function that calls for answers inside out: its questions are pulled one by one.

stable-baselines3's ``learn()`` drives the environment; a strategy is driven by the search loop. So ``learn()`` runs in
a thread that hands control over with every question. Only one of the two threads ever runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Closed(BaseException):
    """Ends the function from within its question."""


class _Finished:
    """What the thread hands over when the function has returned or raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Handoff(Generic[Question, Answer]):
    """Runs ``body(ask)`` in a thread; ``ask(question)`` inside waits for ``answer`` outside.

    ``question`` and ``answer`` alternate. An error in the body is raised by ``question``.
    """

    def __init__(self, body: Callable[[Callable[[Question], Answer]], None], *, name: str) -> None:
        self._body = body
        self._questions: SimpleQueue[tuple[Question] | _Finished] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Answer] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._pending: tuple[Answer] | None = None
        self._over = False

    def question(self) -> Question | None:
        """Let the body run until its next question and return it, or None where the body has returned."""
        if self._over:
            return None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put(self._pending)
        found = self._questions.get()
        if not isinstance(found, _Finished):
            return found[0]
        self._over = True
        self._thread.join()
        if found.error is not None:
            raise found.error
        return None

    def answer(self, answer: Answer) -> None:
        """Answer the last question; the body goes on when the next one is pulled."""
        self._pending = (answer,)

    def close(self) -> None:
        """End the body at its next question, if it still runs, and wait for the thread."""
        if self._thread.ident is not None and not self._over:
            self._answers.put(None)
            self._thread.join()
        self._over = True

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._body(self._ask)
        except _Closed:
            pass
        except BaseException as raised:  # handed to the other thread, whatever it is
            error = raised
        self._questions.put(_Finished(error))

    def _ask(self, question: Question) -> Answer:
        self._questions.put((question,))
        found = self._answers.get()
        if found is None:
            raise _Closed
        return found[0]
