"""Looking at Slurm: one listing a tick, and a value for "it did not answer".

What else a decision may need of Slurm is asked for only where something is wrong, and seldom, so that a tick that finds
nothing to do costs one call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from penstock.core.jobs import Cluster, Job
from penstock.core.model import Listing, Unknown
from penstock.slurm.port import HISTORY_MAX, NoAccounting, Slurm, SlurmUnavailable

log = logging.getLogger(__name__)

LOOK_AROUND_AGAIN_AFTER = timedelta(seconds=30)
"""Where Slurm did not say which nodes there are, a tick that needs it goes on without for so long: it is several
calls."""

CLUSTER_STANDS_FOR = timedelta(minutes=5)
"""What was seen of the nodes is believed for so long: a drained node is no emergency, and its jobs go on."""

HISTORY_EVERY = timedelta(seconds=10)
"""slurmdbd may be a minute behind slurmctld, so what it does not know now is asked again."""
NO_HISTORY_FOR = timedelta(hours=1)

UNWATCHED = timedelta(seconds=20)
"""Where nobody asked for so long Slurm may have been silent meanwhile. Two of its message time-outs, by its default: of
the three that a doubt lasts at the least, one is left for what waited at its door."""


class Observer:
    """Asks Slurm for its queue, and remembers since when it has not answered."""

    def __init__(self, slurm: Slurm, clock: Callable[[], datetime]) -> None:
        self._slurm = slurm
        self._clock = clock
        self._silent_since: datetime | None = None
        self._answers_since: datetime | None = None
        self._answered_at: datetime | None = None
        self._past: dict[str, Job] = {}
        self._ask_history_at: datetime | None = None
        self._cluster: Cluster | None = None
        self._cluster_at: datetime | None = None
        self._unsaid_at: datetime | None = None
        """When Slurm last did not say which nodes there are; None: it did since."""
        self._message_timeout_s: int | None = None

    async def look(self) -> Listing | Unknown:
        """The queue in full, or Unknown. One call of Slurm; logs only when Slurm falls silent or answers
        again."""
        asked_at = self._clock()
        try:
            jobs = await self._slurm.list_jobs()
        except SlurmUnavailable as error:
            self._answers_since = None
            if self._silent_since is None:
                self._silent_since = self._clock()
                log.warning("Slurm does not answer: %s", error)
            return Unknown(str(error), self._silent_since)
        if self._silent_since is not None:
            log.info(
                "Slurm answers again; it was silent since %s",
                self._silent_since.isoformat(timespec="seconds"),
            )
            self._silent_since = None
        if self._answered_at is None or asked_at - self._answered_at > UNWATCHED:
            self._answers_since = None
        self._answered_at = self._clock()
        self._answers_since = self._answers_since or self._answered_at
        return Listing(jobs, self._answers_since)

    async def look_around(self) -> Cluster | None:
        """Asks for nodes, partitions and reservations anew; None while Slurm does not say. Between two ticks rather
        than in them: on a large cluster the answer takes its time."""
        try:
            self._cluster = await self._slurm.cluster()
        except SlurmUnavailable as error:
            log.info("Slurm does not say which nodes there are: %s", error)
            self._unsaid_at = self._clock()
            return None
        self._cluster_at, self._unsaid_at = self._clock(), None
        self._message_timeout_s = self._cluster.message_timeout_s
        return self._cluster

    @property
    def cluster(self) -> Cluster | None:
        """As seen in the last minutes; None: nobody could look for so long."""
        if self._cluster_at is None or self._clock() >= self._cluster_at + CLUSTER_STANDS_FOR:
            return None
        return self._cluster

    async def cluster_if_it_says(self) -> Cluster | None:
        """As `look_around`, without asking where Slurm has just not said."""
        if self._unsaid_at is not None and self._clock() < self._unsaid_at + LOOK_AROUND_AGAIN_AFTER:
            return None
        return await self.look_around()

    @property
    def message_timeout_s(self) -> int | None:
        """Slurm's MessageTimeout as it was last said, however long ago; None: it never was."""
        return self._message_timeout_s

    async def history(self, vanished: Mapping[str, tuple[int, str]]) -> Mapping[str, Job]:
        """What accounting says of jobs that a full listing lacks; `vanished`: token -> job id and name.

        An answer is remembered while its job is asked for. Asked at most every HISTORY_EVERY, and an hour after a
        site said that it keeps none; a question that fails leaves the job unknown, as on a site without.
        """
        self._past = {token: job for token, job in self._past.items() if token in vanished}
        names = {
            job_id: (token, name) for token, (job_id, name) in vanished.items() if token not in self._past
        }
        now = self._clock()
        if not names or (self._ask_history_at is not None and now < self._ask_history_at):
            return self._past
        self._ask_history_at = now + HISTORY_EVERY
        try:
            found = await self._slurm.history(sorted(names)[:HISTORY_MAX])
        except NoAccounting as error:
            self._ask_history_at = now + NO_HISTORY_FOR
            log.info("forgotten jobs are not looked up: %s", error)
        except SlurmUnavailable as error:
            log.warning("accounting does not answer: %s", error)
        else:
            for job in found:  # Of several runs the last one counts.
                token, name = names.get(job.job_id, ("", ""))
                if job.name == name and job.ended:
                    self._past[token] = job
        return self._past
