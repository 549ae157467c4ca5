"""The process that answers calls: SQL functions that wait for a vector.

Transports bring calls and take answers; the server knows neither tables nor sockets.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from pgembed.errors import ModelError
from pgembed.models.session import Model
from pgembed.postgres.vectors import Float32
from pgembed.worker import batching, metrics
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.loader import Loader
from pgembed.worker.pending import AnsweredCall, Call, Group, PendingCalls

_log = logging.getLogger(__name__)

SLICE_TOKENS = 512  # of a long call, between two looks at the short ones
# Texts of many callers differ in length: in small batches little of it is padding. With
# 50 short texts and MiniLM, 256 tokens a batch give 450 texts a second, 2048 give 320.
_SHORT_TOKENS = 256
_WAIT = 0.2
_LOADING_WAIT = 0.01


class Transport(Protocol):
    """Brings calls from where callers wait, and takes the answers there."""

    def take(self, timeout: float) -> list[Call]:
        """Return new calls; waits for one at most *timeout* seconds."""

    def answer(self, answers: Sequence[AnsweredCall]) -> None:
        """Answer calls of one group with vectors, float32 (n, d), or with errors."""

    def has_caller(self, call: Call) -> bool:
        """Whether the caller is still there, as far as is known."""


class _LongCall:
    """A call of many texts, answered slice by slice."""

    def __init__(self, call: Call, model: Model) -> None:
        self.call = call
        self.model = model
        self.encoded = model.tokenize(call.contents, call.group.side)
        self.vectors = np.empty((len(self.encoded), model.dimensions), np.float32)
        self._slices = list(self.encoded.batches(SLICE_TOKENS))

    def step(self) -> bool:
        """Run one slice; return whether it was the last."""
        rows = self._slices.pop(0)
        self.vectors[rows] = self.model.run(self.encoded.take(rows))
        return not self._slices


class _ShortCalls:
    """Calls of a group whose texts run together."""

    def __init__(self, calls: Sequence[Call], model: Model) -> None:
        texts = [text for call in calls for text in call.contents]
        self._calls = calls
        self._model = model
        self._encoded = model.tokenize(texts, calls[0].group.side)
        self._missing = [len(call.contents) for call in calls]
        """How many texts of each call are still to be run."""
        self._ends = list(itertools.accumulate(self._missing))
        self._caller = [i for i, size in enumerate(self._missing) for _ in range(size)]
        """Whose each text is."""
        self._vectors = np.zeros((len(texts), model.dimensions), np.float32)
        self._errors: dict[int, str] = {}

    def answers(self) -> Iterator[list[AnsweredCall]]:
        """Run batch after batch; yield the answers that are complete after each."""
        if empty := [i for i, size in enumerate(self._missing) if not size]:
            yield [self._answer(caller) for caller in empty]
        for rows, result in batching.results(
            self._encoded,
            self._model.run,
            batch_tokens=_SHORT_TOKENS,
            dimensions=self._model.dimensions,
        ):
            callers = [self._caller[row] for row in rows.tolist()]
            if isinstance(result, str):
                self._errors.update(dict.fromkeys(callers, result))
            else:
                self._vectors[rows] = result
            complete = []
            for caller in callers:
                self._missing[caller] -= 1
                if not self._missing[caller]:
                    complete.append(self._answer(caller))
            yield complete

    def _answer(self, caller: int) -> AnsweredCall:
        call, end = self._calls[caller], self._ends[caller]
        vectors = self._vectors[end - len(call.contents) : end]
        return call, self._errors.get(caller, vectors)


class CallServer:
    """Answers short calls as they come, together; long ones between them."""

    def __init__(
        self, transport: Transport, loader: Loader, lifetime: Lifetime
    ) -> None:
        self._transport = transport
        self._loader = loader
        self._lifetime = lifetime
        self._pending = PendingCalls()
        self._long: _LongCall | None = None
        self._ahead = ThreadPoolExecutor(1, "ahead")

    def run(self) -> None:
        """Answer until told to stop, then what was taken already."""
        while not self._lifetime.stopping:
            self.take(self._patience())
            self.step()
        while (self._pending or self._long) and not self._lifetime.over:
            self.step()
            if self._loader.is_loading:
                time.sleep(_LOADING_WAIT)

    def take(self, timeout: float) -> None:
        """Take new calls in; waits for one at most *timeout* seconds."""
        self._pending.add(self._transport.take(timeout))

    def step(self) -> None:
        """Answer the short calls whose model is loaded, and a slice of a long one."""
        self._pending.drop(self._is_over)
        for group in self._pending.groups():
            model = self._model(group)
            if model is None:
                continue
            self._answer_short(model, self._pending.short_of(group))
            if self._long is None:
                self._begin_long(model, self._pending.long_of(group))
        if self._long is not None:
            self._go_on(self._long)

    def _patience(self) -> float:
        if self._long is not None:
            return 0.0
        return _LOADING_WAIT if self._pending else _WAIT

    def _model(self, group: Group) -> Model | None:
        try:
            return self._loader.find(group.model, group.model_hash)
        except Exception as error:  # whatever it is, other models answer
            _log.error("model %s cannot be loaded: %s", group.model, error)
            message = f"model {group.model!r} cannot be loaded: {error}"
            self._answer([(call, message) for call in self._pending.all_of(group)])
            return None

    def _answer_short(self, model: Model, calls: Sequence[Call]) -> None:
        if not calls:
            return
        try:
            together = _ShortCalls(calls, model)
        except Exception as error:
            self._answer([(call, _message(error)) for call in calls])
            return
        left = len(calls)
        answers = together.answers()
        upcoming: Future[list[AnsweredCall]] | None = None
        while left:
            complete = upcoming.result() if upcoming else next(answers)
            left -= len(complete)
            # The model goes on while answers leave and calls come.
            upcoming = self._ahead.submit(next, answers) if left else None
            self._answer(complete)
            if left:
                self.take(0)

    def _answer(self, answers: Sequence[AnsweredCall]) -> None:
        if not answers:
            return
        self._transport.answer(answers)
        for call, _ in answers:
            seconds = time.monotonic() - call.taken
            labels = call.group.model, call.group.side
            metrics.CALL_SECONDS.labels(*labels).observe(seconds)

    def _begin_long(self, model: Model, call: Call | None) -> None:
        if call is None:
            return
        try:
            self._long = _LongCall(call, model)
        except Exception as error:
            self._answer([(call, _message(error))])

    def _is_over(self, call: Call) -> bool:
        """Whether nobody waits for the answer any longer."""
        return call.deadline < time.monotonic() or not self._transport.has_caller(call)

    def _go_on(self, long: _LongCall) -> None:
        answer: Float32 | str | None = None
        try:
            if self._is_over(long.call):
                self._long = None
            elif long.step():
                answer = long.vectors
        except Exception as error:
            answer = _message(error)
        if answer is not None:
            self._long = None
            self._answer([(long.call, answer)])


def _message(error: Exception) -> str:
    if isinstance(error, ModelError):
        return str(error)
    return f"the model failed: {type(error).__name__}: {error}"
