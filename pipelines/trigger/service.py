"""The trigger: looks, decides, acts, again and again. All it knows is in the store, so that it may die at any point and
there may be several of it.

Not covered: what to do when (`watcher`), what starts runs (`launcher`), and who wakes it (`server`).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import Event

from components.core.claims import BATCH, NEW, Attempt, Claim, ClaimLog, ClaimState, Ended, Entry, OpenClaim, Started
from components.core.config import Config
from components.core.errors import ConfigurationError, RetrainError
from components.core.metrics import TriggerMetrics
from components.core.run_claims import judge_run, run_arguments
from components.core.runs import Run
from components.core.storage import ObjectStore
from components.ingest.deliveries import Upload
from pipelines.trigger.launcher import Launcher, LauncherUnavailable
from pipelines.trigger.watcher import Follow, Launch, Look, Memory, Moment, Retry, Take, Wait, watch

logger = logging.getLogger(__name__)
DELETED = "The run was deleted."


def clock() -> Moment:
    """Now."""
    return Moment(calendar=datetime.now(UTC), seconds=time.monotonic())


class Trigger:
    """One process that starts runs of one model."""

    def __init__(
        self,
        config: Config,
        store: ObjectStore,
        launcher: Launcher,
        look: Callable[[ClaimState], Iterable[Upload]] = lambda state: (),
        now: Callable[[], Moment] = clock,
    ) -> None:
        """
        Args:
            config: Names the model and the policy.
            store: Where the log of claims is, and the records of runs.
            launcher: Starts runs.
            look: What the source shows; by default nothing, so that only requests are taken.
            now: The time.
        """
        self.config, self.store, self.launcher = config, store, launcher
        self.log = ClaimLog(store, config.model, lambda: now().calendar)
        self.me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._look, self._now = look, now
        self._memory = Memory()

    def tick(self) -> Look:
        """Do all that can be done now.

        Returns:
            The last look, whose decision is to wait, or to follow a run that has not ended.

        Raises:
            LauncherUnavailable: The engine does not answer. The next tick goes on from there.
            StoreUnreachable: Store or source does not answer; the same.
            IntegrityError: The log of claims is not what was written.
        """
        while True:
            now, state = self._now(), self.log.read()  # the time before the look: what is seen is no older
            look = watch(self._look(state), state, self.config.trigger, self._memory, now, self.me)
            self._memory = look.memory
            match look.decision:
                case Wait():
                    return look
                case Take(deliveries=deliveries, arguments=arguments):
                    asked = arguments or run_arguments(self.config, NEW)
                    self._enter(state, Claim(actor=self.me, deliveries=deliveries, arguments=asked))
                case Retry(claim=claim):
                    self._enter(state, self._attempt(claim, claim.attempt + 1))
                case Launch(claim=claim, takeover=takeover):
                    self._launch(state, claim, takeover)
                case Follow(claim=claim, run_id=run_id):
                    if not self._follow(state, claim, run_id):
                        return look

    def _enter(self, state: ClaimState, entry: Entry) -> bool:
        """Write an entry, unless the log has grown since it was decided on. Returns whether it was written."""
        decided_at = state.entries
        written = self.log.enter(lambda now: entry if now.entries == decided_at else None)
        if written is not None:
            logger.info("claim %s", _tell(written))
        return written is not None

    def _attempt(self, claim: OpenClaim, attempt: int) -> Attempt:
        return Attempt(actor=self.me, claim=claim.number, attempt=attempt)

    def _launch(self, state: ClaimState, claim: OpenClaim, takeover: bool) -> None:
        name = run_name(self.config.model, claim)
        run_id = self.launcher.find(name)
        if run_id is None:
            if takeover and not self._enter(state, self._attempt(claim, claim.attempt)):
                return
            arguments = claim.arguments.model_copy(update={"source": f"{BATCH}{claim.number}"})
            try:
                run_id = self.launcher.start(name, arguments)
            except ConfigurationError as error:  # counted like a run that failed: it must not be tried for ever
                self._give_up(claim, error)
                raise
        started = Started(actor=self.me, claim=claim.number, run_id=run_id)
        # Else the run has entered itself; or another one has, and this one will see that and stop.
        self.log.enter(lambda now: started if _awaits_run(now.open, claim) else None)
        logger.info("run %s (%s) on %s", run_id, name, ", ".join(claim.deliveries))

    def _give_up(self, claim: OpenClaim, error: ConfigurationError) -> None:
        """Enter that the engine would not start the run of an attempt."""
        ended = Ended(actor=self.me, claim=claim.number, run_id=None, result="failed", reason=str(error))
        self.log.enter(lambda now: ended if _awaits_run(now.open, claim) else None)

    def _follow(self, state: ClaimState, claim: OpenClaim, run_id: str) -> bool:
        """See whether a run has ended, and enter it. Returns whether something has changed."""
        word = self.launcher.state(run_id)
        if word == "running":
            return False
        result, reason = judge_run(Run(self.store, run_id), succeeded=word == "succeeded")
        if word == "gone":
            reason = DELETED
        ended = Ended(actor=self.me, claim=claim.number, run_id=run_id, result=result, reason=reason)
        self._enter(state, ended)
        return True


def _awaits_run(current: OpenClaim | None, claim: OpenClaim) -> bool:
    """Whether the same attempt still is under way, and no run of it is known."""
    same = current is not None and (current.number, current.attempt) == (claim.number, claim.attempt)
    return same and current is not None and current.run_id is None and not current.failed


def run_name(model: str, claim: OpenClaim) -> str:
    """What the run of a claim's attempt is called: the same for all who might start it."""
    return f"retrain-{model}-{claim.number}-{claim.attempt}-{claim.nonce[:8]}"


def _tell(entry: Entry) -> str:
    """An entry in a few words, for the log."""
    match entry:
        case Claim():
            return f"{entry.number}: {len(entry.deliveries)} deliveries, from {entry.deliveries[0]}"
        case Attempt():
            return f"{entry.claim}: attempt {entry.attempt}"
        case Ended():
            return f"{entry.claim}: run {entry.run_id} {entry.result}. {entry.reason}".rstrip()
        case _:
            return f"{entry.number}: {entry.kind}"


class Loop:
    """Ticks until it is told to stop. What fails is logged, and the next tick goes on from there.

    Attributes:
        error: What went wrong in the last tick; None where nothing did, or there was none yet.
        looked: Whether there was a good one.
        busy_since: When the present one began, in seconds of a clock that does not jump; None between two.
    """

    def __init__(self, trigger: Trigger, metrics: TriggerMetrics, poll_seconds: float) -> None:
        self._trigger, self._metrics, self._poll_seconds = trigger, metrics, poll_seconds
        self.error: str | None = None
        self.looked = False
        self.busy_since: float | None = None
        self._told = ""
        self._wake, self._stop = Event(), Event()

    def run(self) -> None:
        """Tick every few seconds, and whenever woken."""
        while not self._stop.is_set():
            self.tick()
            self._wake.wait(self._poll_seconds)
            self._wake.clear()

    def tick(self) -> None:
        """One tick, whatever goes wrong."""
        self.busy_since = time.monotonic()
        try:
            self._observe(self._trigger.tick())
        except (RetrainError, LauncherUnavailable) as error:
            self.error = str(error)
            logger.warning("this look failed: %s", error)
        except Exception as error:  # the loop must survive what nobody thought of
            self.error = f"{type(error).__name__}: {error}"
            logger.exception("this look failed")
        else:
            self.error, self.looked = None, True
        self._metrics.on_tick(time.monotonic() - self.busy_since, went_well=self.error is None)
        self.busy_since = None

    def wake(self) -> None:
        """Make it look now."""
        self._wake.set()

    def stop(self) -> None:
        """Make it end after the present tick."""
        self._stop.set()
        self._wake.set()

    def _observe(self, look: Look) -> None:
        state = self._trigger.log.state
        self._metrics.on_look(look.complete, len(look.incomplete), paused=look.paused)
        self._metrics.on_log(state.counts, len(state.taken), active=state.open is not None, failures=state.failures)
        told = tell(look)
        if re.sub(r"\d+", "", told) != re.sub(r"\d+", "", self._told) or self.error:  # not each second that passes
            logger.info("%s", told)
        self._told = told


def tell(look: Look) -> str:
    """What came of a look, in a sentence."""
    match look.decision:
        case Follow(claim=claim, run_id=run_id):
            return f"run {run_id} is at {BATCH}{claim.number}, attempt {claim.attempt}"
        case Wait(why=why):
            return why
    raise AssertionError("a tick ends by waiting or following")
