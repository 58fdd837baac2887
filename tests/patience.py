"""How long tests wait for what takes moments when the machine does nothing else.

A bound here only ends what hangs; no test measures by it. What takes longer by itself (a grace time, a failover, a
model's load), and what is promised to take no longer, has a bound of its own beside it, with its reason.
"""

from __future__ import annotations

PATIENCE_S = 60.0
"""For an answer, a process, a look at a table: beside two other tests on two cores each start and each poll may take
seconds."""
JOB_PATIENCE_S = 120.0
"""For a job's start or end, or a whole Penstock's: several processes, one after the other."""
