"""The process that answers calls: SQL functions that wait for a vector.

Transports bring calls and take answers; the server knows neither tables nor sockets.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol

import numpy as np

from pgembed.errors import ModelError
from pgembed.models.encoding import Encoded, Integers
from pgembed.models.session import Model
from pgembed.postgres.vectors import Float32
from pgembed.worker import batching, metrics
from pgembed.worker.batching import Outcome
from pgembed.worker.lifetime import Lifetime
from pgembed.worker.loader import Loader
from pgembed.worker.pending import AnsweredCall, Call, Group, PendingCalls

_log = logging.getLogger(__name__)

SLICE_TOKENS = 512  # of a long call, between two looks at the short ones
# Texts of many callers differ in length: in small batches little of it is padding. With
# 50 short texts and MiniLM, 256 tokens a batch give 450 texts a second, 2048 give 320.
_SHORT_TOKENS = 256
# Batches that take longer run side by side, as many as there are cores. To hand others
# over to a thread takes about as long as to run them.
_SLOW = 0.005  # seconds
_CORES = len(os.sched_getaffinity(0))
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


@dataclasses.dataclass(eq=False)
class _Taken:
    """A short call, and what there is of its answer."""

    call: Call
    vectors: Float32
    missing: int
    """How many of its texts are still to be run."""
    error: str | None = None

    def answer(self) -> AnsweredCall:
        """Return the whole answer."""
        return self.call, self.vectors if self.error is None else self.error


class _Text(NamedTuple):
    """A text that waits: of which call, which of its texts, and its tokens."""

    of: _Taken
    place: int
    tokens: Integers


class _ShortCalls:
    """Calls of a group whose texts run together; others join while it goes on."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._waiting: list[_Text] = []

    def __len__(self) -> int:
        """Return how many texts wait."""
        return len(self._waiting)

    def add(self, calls: Sequence[Call]) -> list[AnsweredCall]:
        """Take calls of one group in; return the answers to those without a text.

        Raises what the tokenizer raises.
        """
        texts = [text for call in calls for text in call.contents]
        tokens = iter(self._model.tokenize(texts, calls[0].group.side).texts())
        empty = []
        for call in calls:
            size = len(call.contents)
            vectors = np.zeros((size, self._model.dimensions), np.float32)
            taken = _Taken(call, vectors, size)
            self._waiting += [_Text(taken, i, next(tokens)) for i in range(size)]
            if not size:
                empty.append(taken.answer())
        return empty

    def next_batch(self) -> list[_Text]:
        """Remove and return the texts to run next: the oldest, and those like it."""
        wanted = len(self._waiting[0].tokens)
        alike = sorted(self._waiting, key=lambda text: abs(len(text.tokens) - wanted))
        batch, longest = alike[:1], wanted
        for text in alike[1:]:
            longest = max(longest, len(text.tokens))
            if (len(batch) + 1) * longest > _SHORT_TOKENS:
                break
            batch.append(text)
        chosen = set(map(id, batch))
        self._waiting = [text for text in self._waiting if id(text) not in chosen]
        return batch

    def drop(self, unwanted: Callable[[Call], bool]) -> None:
        """Forget the texts of calls."""
        self._waiting = [text for text in self._waiting if not unwanted(text.of.call)]

    def run(self, batch: list[_Text]) -> tuple[list[_Text], Outcome]:
        """Run a batch; other batches may run at the same time, in other threads."""
        tokens = [text.tokens for text in batch]
        encoded = Encoded(
            np.concatenate(tokens), np.fromiter(map(len, tokens), np.int64)
        )
        return batch, batching.embed(
            encoded,
            self._model.run,
            batch_tokens=_SHORT_TOKENS,
            dimensions=self._model.dimensions,
        )

    def settle(self, batch: list[_Text], outcome: Outcome) -> list[AnsweredCall]:
        """Take in what became of a batch, and return the answers that it completes."""
        for i, (taken, place, _) in enumerate(batch):
            taken.vectors[place] = outcome.vectors[i]
            taken.error = taken.error or outcome.errors.get(i)
            taken.missing -= 1
        complete = dict.fromkeys(text.of for text in batch if not text.of.missing)
        return [taken.answer() for taken in complete]


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
        self._ahead = ThreadPoolExecutor(_CORES, "ahead")

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
        groups = self._pending.groups()
        self._loader.forget(but={group.model_hash for group in groups})
        for group in groups:
            model = self._model(group)
            if model is None:
                continue
            if calls := self._pending.short_of(group):
                self._answer_short(model, calls)
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
        if len(calls) == 1 and len(calls[0].contents) == 1:  # as most calls
            self._answer([_answer_alone(model, calls[0])])
            return
        together = _ShortCalls(model)
        self._join(together, calls)
        complete: list[AnsweredCall] = []
        while together:
            started = time.monotonic()
            complete += together.settle(*together.run(together.next_batch()))
            if together and time.monotonic() - started > _SLOW:
                self._answer_side_by_side(together, calls[0].group, complete)
                return
        self._answer(complete)

    def _answer_side_by_side(
        self, together: _ShortCalls, group: Group, complete: list[AnsweredCall]
    ) -> None:
        """Let the model go on while answers leave, and calls come that may join."""
        running: set[Future[tuple[list[_Text], Outcome]]] = set()
        while together or running:
            if together and len(running) < _CORES:
                batch = together.next_batch()
                running.add(self._ahead.submit(together.run, batch))
                continue
            self._answer(complete)
            self.take(0)
            self._pending.drop(self._is_over)
            together.drop(self._is_over)
            if self._may_join(group):
                self._join(together, self._pending.short_of(group))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            complete = []
            for each in done:
                complete += together.settle(*each.result())
        self._answer(complete)

    def _join(self, together: _ShortCalls, calls: Sequence[Call]) -> None:
        if not calls:
            return
        try:
            answers = together.add(calls)
        except Exception as error:
            if len(calls) > 1:
                for call in calls:  # what one of them holds is not the others' fault
                    self._join(together, [call])
                return
            answers = [(calls[0], _message(error))]
        self._answer(answers)

    def _may_join(self, group: Group) -> bool:
        """Whether calls of the group may join those that run: nothing else waits."""
        return (
            self._long is None
            and not self._lifetime.stopping
            and self._pending.has_only_short_of(group)
        )

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


def _answer_alone(model: Model, call: Call) -> AnsweredCall:
    try:
        return call, model.run(model.tokenize(call.contents, call.group.side))
    except Exception as error:
        return call, _message(error)


def _message(error: Exception) -> str:
    if isinstance(error, ModelError):
        return str(error)
    return f"the model failed: {type(error).__name__}: {error}"
