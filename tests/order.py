"""In which order files are tested, and which stay together, so that two workers end at about the same time.

A long file that begins last keeps one worker busy while the other has nothing left. And of vLLM one runs on the machine
at a time (`tests.engines.one_vllm`), so the files that start it are one worker's: the other would wait for its turn.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

WITH_VLLM = (
    "tests/contract/test_engine_http.py",
    "tests/contract/test_inference.py",
    "tests/integration/test_openai_sdk.py",
    "tests/integration/test_vllm_end_to_end.py",
)
LONG = (
    *WITH_VLLM,
    # Computes most of the time, as vLLM's start does.
    "tests/simulation/test_seeds.py",
    "tests/simulation/test_mutants.py",
    "tests/simulation/test_crashes.py",
    # Wait most of the time.
    "tests/fuzz/test_rest.py",
    "tests/integration/test_rollouts.py",
    "tests/integration/test_handovers.py",
    "tests/integration/test_chaos.py",
    "tests/integration/test_preemption.py",
)
"""Those of minutes, in the order in which they begin; all others follow in their own order."""


class Together(LoadFileScheduling):
    """As `--dist loadfile`, with the files of vLLM as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "vLLM" if file in WITH_VLLM else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together | None:
    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begins = {file: number for number, file in enumerate(LONG)}
    items.sort(key=lambda item: begins.get(item.nodeid.split("::", 1)[0], len(LONG)))
