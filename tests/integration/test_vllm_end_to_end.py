"""The whole path with nothing stood in for: a real model on real vLLM in a job of a real Slurm cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import one_vllm
from tests.penstocks import Penstock, wait_until

READY_WITHIN_S = 420
"""vLLM imports itself for a minute and a half on a busy machine."""

MANIFEST = """
apiVersion: penstock/v1
kind: Deployment
metadata: {{name: smollm2}}
spec:
  model: {{path: {model}, served_name: HuggingFaceTB/SmolLM2-135M-Instruct}}
  engine:
    args: [--dtype, float32, --enforce-eager, --max-model-len, "2048"]
    env: {{VLLM_CPU_KVCACHE_SPACE: "1"}}
  environment: {{venv: {{path: {engine}}}}}
  resources: {{gpus: 1, cpus: 2, memory: 4GiB}}
  placements: [{{partition: gpu, time_limit: 4h}}]
  drain_timeout_s: 10
"""


@pytest.mark.real_engine
@pytest.mark.timeout(600)
def test_a_real_model_answers_from_a_job(penstock: Penstock, engine_env: Path, smollm2: Path) -> None:
    with one_vllm():
        penstock.apply(MANIFEST.format(model=smollm2, engine=engine_env))
        penstock.wait_ready("smollm2", 1, READY_WITHIN_S)
        question = "What is the capital of France? Answer in one short sentence."
        for name in ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"):
            done = penstock.cli("chat", name, question, "--temperature", "0", "--max-tokens", "32")
            assert "Paris" in done.stdout
        assert "vLLM" in penstock.cli("logs", "smollm2-1").stdout
        penstock.cli("delete", "smollm2", "--wait")
    wait_until(lambda: not penstock.cluster.run("squeue", "-h").strip(), 30, "no job is left")
