"""Amounts as people write them: memory such as `8GiB`, times such as `4h` or `2-12:00:00`.

Pure text to numbers; knows neither the protos nor core. The contract's field rules have the same grammar; what
they cannot say (sixty-one seconds, a time of nothing) is refused here with a ValueError that says what would be
accepted.
"""

from __future__ import annotations

import re

MEMORY_FORM = "a whole number with a unit: K, M, G, T, or KiB, MiB, GiB, TiB, such as 8GiB or 16G"
TIME_FORM = (
    "minutes, MM:SS, HH:MM:SS, D-HH[:MM[:SS]], or a number with s, m, h or d, such as 4h or 2-12:00:00"
)

_KIB = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def memory_mib(text: str) -> int:
    """Mebibytes, rounded up. `G` and `GiB` are the same, as in Slurm.

    >>> memory_mib("8GiB"), memory_mib("16G"), memory_mib("1500K")
    (8192, 16384, 2)
    """
    found = re.fullmatch(r"([1-9][0-9]{0,9})([KMGT])i?B?", text)
    if found is None:
        raise ValueError(f"must be {MEMORY_FORM}")
    return -(-int(found[1]) * _KIB[found[2]] // 1024)


def time_limit_s(text: str) -> int:
    """Seconds, of any spelling that sbatch's --time takes, or a number with a unit.

    >>> time_limit_s("90"), time_limit_s("4h"), time_limit_s("2-12:00:00"), time_limit_s("1:30"), time_limit_s("1-0")
    (5400, 14400, 216000, 90, 86400)
    """
    if found := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
        seconds = int(found[1]) * _SECONDS[found[2]]
    elif re.fullmatch(r"[0-9]{1,7}", text):
        seconds = int(text) * 60
    elif found := re.fullmatch(r"([0-9]{1,4})-([0-9]{1,2})(?::([0-9]{2}))?(?::([0-9]{2}))?", text):
        seconds = int(found[1]) * 86400 + _clock(found[2], found[3] or "0", found[4] or "0", hours=24)
    elif found := re.fullmatch(r"(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-9]{2})", text):
        # Without hours the minutes may be many: `90:00` is an hour and a half.
        seconds = (
            _clock(found[1], found[2], found[3])
            if found[1]
            else _clock("0", "0", found[3]) + int(found[2]) * 60
        )
    else:
        raise ValueError(f"must be {TIME_FORM}")
    if seconds == 0:
        raise ValueError(f"must be more than no time at all: {TIME_FORM}")
    return seconds


def _clock(hours_text: str, minutes_text: str, seconds_text: str, hours: int | None = None) -> int:
    if int(minutes_text) > 59 or int(seconds_text) > 59 or (hours is not None and int(hours_text) >= hours):
        raise ValueError(f"has more minutes, seconds or hours than its place holds: must be {TIME_FORM}")
    return int(hours_text) * 3600 + int(minutes_text) * 60 + int(seconds_text)


def as_memory(mib: int) -> str:
    """For people: the largest unit that is exact.

    >>> as_memory(8192), as_memory(1500)
    ('8GiB', '1500MiB')
    """
    for unit, size in (("TiB", 1024**2), ("GiB", 1024)):
        if mib and mib % size == 0:
            return f"{mib // size}{unit}"
    return f"{mib}MiB"


def as_time(seconds: int) -> str:
    """For people, as Slurm writes it.

    >>> as_time(14400), as_time(216000)
    ('4:00:00', '2-12:00:00')
    """
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}" if days else clock
