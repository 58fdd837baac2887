"""Memory and time in every spelling that is taken, and the ones that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.rpc.quantities import as_memory, as_time, memory_mib, time_limit_s


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("8GiB", 8192),
        ("8G", 8192),
        ("8Gi", 8192),
        ("8GB", 8192),
        ("800M", 800),
        ("1T", 1024**2),
        ("1K", 1),
        ("1025KiB", 2),
    ],
)
def test_memory(text: str, mib: int) -> None:
    assert memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "8", "8 GiB", "8 GiBs", "0G", "-1G", "1.5G", "8g", "8GiBs", "G"])
def test_memory_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a whole number with a unit"):
        memory_mib(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90s", 90),
        ("30m", 1800),
        ("4h", 14400),
        ("2d", 172800),
        ("1:30", 90),
        ("90:00", 5400),
        ("4:00:00", 14400),
        ("36:00:00", 129600),
        ("2-12", 216000),
        ("2-12:30", 217800),
        ("2-12:00:00", 216000),
    ],
)
def test_time(text: str, seconds: int) -> None:
    assert time_limit_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0h", "00:00", "1:60", "1:60:00", "0-24", "4 h", "4H", "-5", "1:2:3:4", "forever"]
)
def test_time_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"minutes, MM:SS, HH:MM:SS"):
        time_limit_s(text)


@given(st.integers(1, 400 * 86400))
def test_time_as_people_read_it_is_read_back(seconds: int) -> None:
    assert time_limit_s(as_time(seconds)) == seconds


@given(st.integers(1, 2**30))
def test_memory_as_people_read_it_is_read_back(mib: int) -> None:
    assert memory_mib(as_memory(mib)) == mib
