"""The whole path with nothing stood in for: a real model on real vLLM in a job of a real Slurm cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from tests.engines import make_tiny_lora, one_vllm
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

EMBEDDING = """
apiVersion: penstock/v1
kind: Deployment
metadata: {{name: minilm}}
spec:
  model: {{path: {model}}}
  engine:
    task: embed
    args: [--dtype, float32, --enforce-eager, --max-model-len, "256"]
    env: {{VLLM_CPU_KVCACHE_SPACE: "1"}}
  environment: {{venv: {{path: {engine}}}}}
  resources: {{gpus: 1, cpus: 2, memory: 4GiB}}
  placements: [{{partition: gpu, time_limit: 4h}}]
  drain_timeout_s: 10
"""
ADAPTED = """
apiVersion: penstock/v1
kind: Deployment
metadata: {{name: tiny}}
spec:
  model: {{path: {model}, adapter_room: {{max_rank: 8}}, adapters: {adapters}}}
  engine:
    args: [--dtype, float32, --enforce-eager, --max-model-len, "512"]
    env: {{VLLM_CPU_KVCACHE_SPACE: "1"}}
  environment: {{venv: {{path: {engine}}}}}
  resources: {{gpus: 1, cpus: 2, memory: 4GiB}}
  placements: [{{partition: gpu, time_limit: 4h}}]
  drain_timeout_s: 10
"""
SCHEMA = """{"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo", "Paris"]}}, "required": ["city"],
"additionalProperties": false}"""


@pytest.mark.real_engine
@pytest.mark.timeout(600)
def test_a_real_model_answers_from_a_job(
    penstock: Penstock, engine_env: Path, smollm2: Path, tmp_path: Path
) -> None:
    with one_vllm():
        penstock.apply(MANIFEST.format(model=smollm2, engine=engine_env))
        penstock.wait_ready("smollm2", 1, READY_WITHIN_S)
        question = "What is the capital of France? Answer in one short sentence."
        for name in ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"):
            done = penstock.cli("chat", name, question, "--temperature", "0", "--max-tokens", "32")
            assert "Paris" in done.stdout
        schema = tmp_path / "city.json"
        schema.write_text(SCHEMA)
        shaped = ("--json-schema", str(schema), "--temperature", "0", "--max-tokens", "64", "--usage")
        done = penstock.cli("chat", "smollm2", question, *shaped)
        assert json.loads(done.stdout) == {"city": "Paris"}
        assert "tokens of prompt" in done.stderr
        assert "vLLM" in penstock.cli("logs", "smollm2-1").stdout
        penstock.cli("delete", "smollm2", "--wait")
    wait_until(lambda: not penstock.cluster.run("squeue", "-h").strip(), 60, "no job is left")


@pytest.mark.real_engine
@pytest.mark.timeout(600)
def test_a_real_model_embeds_and_ranks_from_a_job(penstock: Penstock, engine_env: Path, minilm: Path) -> None:
    kitten, cat, truck = (
        "A kitten sleeps on the sofa.",
        "A cat is napping on a couch.",
        "The truck broke down.",
    )
    with one_vllm():
        penstock.apply(EMBEDDING.format(model=minilm, engine=engine_env))
        penstock.wait_ready("minilm", 1, READY_WITHIN_S)
        vectors = json.loads(penstock.cli("embed", "minilm", kitten, cat, truck).stdout)
        assert [len(vector) for vector in vectors] == [384] * 3
        near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
        assert near > 0.5 > far
        with penstock.channel() as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
            request = pb.RerankRequest(model="minilm", query=kitten, documents=[truck, cat])
            ranked = stub.Rerank(request, timeout=120).documents
        assert [document.index for document in ranked] == [1, 0]
        assert ranked[0].score == pytest.approx(near, abs=0.01)
        penstock.cli("delete", "minilm", "--wait")
    wait_until(lambda: not penstock.cluster.run("squeue", "-h").strip(), 60, "no job is left")


@pytest.mark.real_engine
@pytest.mark.timeout(600)
def test_an_adapter_is_added_to_a_real_model_as_it_runs(
    penstock: Penstock, engine_env: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    lora = make_tiny_lora(tmp_path / "loud")

    def apply(*adapters: str) -> None:
        listed = json.dumps([{"name": name, "path": str(lora)} for name in adapters])
        penstock.apply(ADAPTED.format(model=tiny_llama, engine=engine_env, adapters=listed))

    def says(model: str) -> str:
        asked = {"model": model, "prompt": "tell me more", "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"http://{penstock.server}/v1/completions", json=asked, timeout=120)
        return (
            str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else str(answer.status_code)
        )

    with one_vllm():
        apply()
        penstock.wait_ready("tiny", 1, READY_WITHIN_S)
        jobs = penstock.cluster.run("squeue", "-h", "-o", "%i")
        bare = wait_until(
            lambda: text if not (text := says("tiny")).isdigit() else "", 60, "the model answers"
        )
        apply("org/loud")
        # It waits until the replica has loaded it.
        assert says("org/loud") not in (bare, "404", "503")
        assert says("tiny") == bare
        assert "org/loud" in penstock.cli("models").stdout
        apply()
        wait_until(lambda: says("org/loud") == "404", 60, "it is no model any more")
        wait_until(
            lambda: "'org/loud' is unloaded" in penstock.cli("logs", "tiny-1").stdout, 60, "it is unloaded"
        )
        assert says("tiny") == bare
        assert penstock.cluster.run("squeue", "-h", "-o", "%i") == jobs
        penstock.cli("delete", "tiny", "--wait")
    wait_until(lambda: not penstock.cluster.run("squeue", "-h").strip(), 60, "no job is left")
