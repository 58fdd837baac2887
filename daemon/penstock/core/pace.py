"""What comes to nothing is tried again, and more and more seldom.

Slurm may refuse for hours to cancel a job, or a disk may be full for a day. The decision stands meanwhile: it says the
same in each tick, with the reason why nothing comes of it, and has its action only when the next try is due. A first
try waits for nothing. The planner decides as if there were no pace; it is applied to what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from penstock.core.decisions import Action, Cancel, CancelOrphan, Decision, Drain, Resubmit, Submit, Withdraw
from penstock.core.model import Vain

FIRST_S = 5
"""As long as between two ticks: most of what fails has passed by then."""
MAX_S = 300
"""Whoever mends it sees the effect while still at it; and one call in so long is no load."""


def key(action: Action, token: str = "") -> str:
    """What an effect is, over all its tries; empty: no effect. `token`: with Submit, of its new attempt."""
    match action:
        case Submit():
            return token
        case Resubmit():
            return action.token
        case Drain() | Cancel() | Withdraw() | CancelOrphan():
            return f"{type(action).__name__} {action.job_id}"
        case _:
            return ""


def again_at(vain: Vain) -> datetime:
    """When the next try is due: twice as long after each, at most MAX_S."""
    doublings = min(vain.times - 1, 10)  # Beyond 2^10 the limit is reached; keeps the number small.
    return vain.last_at + timedelta(seconds=min(FIRST_S * 2**doublings, MAX_S))


def why(decision: Decision, vain: Mapping[str, Vain], token: str = "") -> str:
    """What a sentence is to say of earlier tries; empty: nothing. `token`: of an attempt without a job."""
    keys = [token, *(key(action) for action in decision.actions)]
    whys = [vain[one].why for one in keys if one in vain and vain[one].why]
    return f": {whys[0]}; tried again within {MAX_S // 60} min" if whys else ""


def paced(decision: Decision, vain: Mapping[str, Vain], now: datetime) -> Decision:
    """The decision without what is not due."""
    due = tuple(
        action
        for action in decision.actions
        if (its := vain.get(key(action))) is None or now >= again_at(its)
    )
    return decision if due == decision.actions else replace(decision, actions=due)
