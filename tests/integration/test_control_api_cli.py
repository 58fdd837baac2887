"""The command line against the real servicers: what is shown, what is asked, and the exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import pytest_asyncio
import yaml
from typer.testing import CliRunner, Result

from penstock.cli.author import author
from penstock.cli.main import app
from penstock.core import decisions as core
from penstock.core.model import Condition, ConditionStatus, Phase, ReplicaState, RolloutRecord
from penstock.core.plan import DeploymentStatus, ReplicaStatus
from penstock.store.database import Database
from penstock.store.queries import attempts, decisions, deployments, replicas, runtime
from penstock.store.records import Load
from penstock.v1 import inference_pb2, inference_pb2_grpc
from tests.control_api import ControlApi, control_api, make_attempt, now

MANIFEST = """\
apiVersion: penstock/v1
kind: Deployment
metadata:
  name: {name}
  labels: {{team: search}}
spec:
  model: {{path: /models/a}}
  resources: {{gpus: 1, memory: 8GiB}}
  placements: [{{partition: gpu, time_limit: 4h}}]
  rollout: {{strategy: recreate}}
"""

Penstock = Callable[..., Awaitable[Result]]


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[ControlApi]:
    async with control_api(database, tmp_path / "attempts") as made:
        yield made


@pytest.fixture
def penstock(api: ControlApi) -> Penstock:
    """Runs the command in a thread, for it brings an event loop of its own."""
    return command_at(api.address)


def command_at(address: str) -> Penstock:
    async def run(*arguments: str, input: str | None = None) -> Result:
        runner = CliRunner(env={"PENSTOCK_SERVER": address})
        return await asyncio.to_thread(runner.invoke, app, list(arguments), input=input)

    return run


async def applied(penstock: Penstock, *names: str) -> None:
    text = "---\n".join(MANIFEST.format(name=name) for name in names)
    done = await penstock("apply", "-f", "-", input=text)
    assert done.exit_code == 0, done.output


class TestApply:
    async def test_creates_configures_and_leaves_alone(self, penstock: Penstock, tmp_path: Path) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(MANIFEST.format(name="a"))
        assert (await penstock("apply", "-f", str(file))).stdout == "deployment/a created\n"
        assert (await penstock("apply", "-f", str(file))).stdout == "deployment/a unchanged\n"
        file.write_text(MANIFEST.format(name="a").replace("8GiB", "9GiB"))
        assert (await penstock("apply", "-f", str(file))).stdout == "deployment/a configured\n"

    async def test_dry_run_shows_everything_and_changes_nothing(self, penstock: Penstock) -> None:
        done = await penstock("apply", "--dry-run", "-f", "-", input=MANIFEST.format(name="a"))
        assert done.exit_code == 0
        assert done.stdout.startswith("deployment/a would be created\nFIELD ")
        assert ["spec.resources.memory", "-", "8GiB"] in [line.split() for line in done.stdout.splitlines()]
        assert "  a: ScaleUp: 0 of 1 exist; 1 made [create-replica revision 1]" in done.stdout
        assert done.stdout.endswith("A new replica's batch script:\n  #!/bin/bash\n  # a\n")
        assert (await penstock("get", "deployments")).stderr == "no deployments found\n"

    async def test_a_bad_manifest_never_reaches_the_server(self, tmp_path: Path) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(MANIFEST.format(name="a") + "  replcias: 2\n")
        done = await command_at("127.0.0.1:1")("apply", "-f", str(file))
        assert done.exit_code == 2
        assert (
            done.stderr
            == f"error: {file}:11: spec.replcias: there is no such field; did you mean replicas?\n"
        )

    async def test_every_mistake_of_all_files_is_told(self, penstock: Penstock, tmp_path: Path) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(MANIFEST.format(name="a") + "  replcias: 2\n")
        done = await penstock("apply", "-f", str(file), "-f", str(tmp_path / "none"))
        assert done.exit_code == 2
        assert done.stderr.splitlines() == [
            "error: 2 mistakes in the manifest; nothing was changed",
            f"  {file}:11: spec.replcias: there is no such field; did you mean replicas?",
            f"  {tmp_path / 'none'}: cannot be read: No such file or directory",
        ]

    async def test_all_are_checked_before_the_first_is_applied(self, penstock: Penstock) -> None:
        bad = MANIFEST.format(name="b").replace("8GiB", "8 GiBs").replace("gpu,", "debug,")
        done = await penstock("apply", "-f", "-", input=MANIFEST.format(name="a") + "---\n" + bad)
        assert done.exit_code == 1
        assert done.stderr == (
            "error: standard input:12: spec.resources.memory: must be a whole number with a unit: K, M, G, T, or KiB,"
            ' MiB, GiB, TiB, such as 8GiB or 16G, not "8 GiBs"\n'
        )
        assert (await penstock("get", "deployments")).stdout == ""

    async def test_several_fields_are_a_line_each(self, penstock: Penstock) -> None:
        bad = MANIFEST.format(name="b").replace("gpus: 1", "gpus: 9").replace("4h", "9999d")
        done = await penstock("apply", "-f", "-", input=bad.replace("partition: gpu", "partition: short"))
        assert done.exit_code == 1
        assert done.stderr.splitlines() == [
            "error: standard input:1: 2 fields cannot be as they are",
            '  spec.placements[0].time_limit: "9999d" is longer than partition short allows, 0:10:00',
            "  spec.resources.gpus: 9 GPUs a node cannot be had:"
            " the most that a node of partition short has is 2 GPUs (node node1)",
        ]

    async def test_one_name_twice(self, penstock: Penstock) -> None:
        text = MANIFEST.format(name="a") + "---\n" + MANIFEST.format(name="a")
        done = await penstock("apply", "-f", "-", input=text)
        assert (done.exit_code, done.stderr) == (
            2,
            'error: standard input:12: metadata.name: "a" stands in standard input:1 already\n',
        )

    async def test_warnings_go_beside_the_answer(self, penstock: Penstock) -> None:
        done = await penstock("apply", "-f", "-", input=MANIFEST.format(name="a").replace("4h", "5m"))
        assert done.stdout == "deployment/a created\n"
        assert done.stderr.startswith(
            'warning: spec.placements[0].time_limit: "5m" is not longer than the 1800 s'
        )

    async def test_what_get_shows_can_be_applied_and_an_older_copy_cannot(self, penstock: Penstock) -> None:
        await applied(penstock, "a")
        shown = (await penstock("get", "deployments", "a", "-o", "yaml")).stdout
        assert (await penstock("apply", "-f", "-", input=shown)).stdout == "deployment/a unchanged\n"
        await penstock("scale", "a", "--replicas", "3")
        done = await penstock("apply", "-f", "-", input=shown)
        assert done.exit_code == 1
        assert "read it again and repeat the change" in done.stderr


class TestGet:
    async def test_tables(self, penstock: Penstock, api: ControlApi) -> None:
        await applied(penstock, "a", "b")
        await make_attempt(api, "a")
        lines = (await penstock("get", "deployments")).stdout.splitlines()
        assert lines[0].split() == ["NAME", "READY", "UP-TO-DATE", "STATE", "AGE"]
        assert [line.split()[:4] for line in lines[1:]] == [
            ["a", "0/1", "0", "New"],
            ["b", "0/1", "0", "New"],
        ]
        wide = (await penstock("get", "deployments", "-o", "wide")).stdout.splitlines()
        assert wide[1].split()[5:] == ["1", "gpu", "/models/a", "0"]
        shown = (await penstock("get", "replicas", "a")).stdout.splitlines()
        assert shown[1].split()[:6] == ["a-1", "Waiting", "1", "-", "-", "1"]
        assert (await penstock("get", "replicas", "a-1")).stdout.splitlines()[1].split()[0] == "a-1"
        assert (await penstock("get", "replicas", "b")).stderr == "no replicas found\n"
        shown = (await penstock("get", "revisions", "a")).stdout.splitlines()
        assert shown[1].split()[:4] == ["1", "1", "0", "yes"]

    async def test_data(self, penstock: Penstock) -> None:
        await applied(penstock, "a", "b")
        found = json.loads((await penstock("get", "deployments", "-o", "json")).stdout)
        assert [item["metadata"]["name"] for item in found["items"]] == ["a", "b"]
        one = json.loads((await penstock("get", "deployment", "a", "-o", "json")).stdout)
        assert one["spec"]["rollout"] == {"strategy": "ROLLOUT_STRATEGY_RECREATE"}
        document = yaml.safe_load((await penstock("get", "deployments", "a", "-o", "yaml")).stdout)
        written = yaml.safe_load(MANIFEST.format(name="a"))
        assert document["spec"] == written["spec"] | {"replicas": 1}
        assert (document["apiVersion"], document["kind"]) == ("penstock/v1", "Deployment")
        documents = yaml.safe_load_all((await penstock("get", "deployments", "-o", "yaml")).stdout)
        assert [item["metadata"]["name"] for item in documents] == ["a", "b"]
        assert (await penstock("get", "deployments", "-o", "name")).stdout == "deployment/a\ndeployment/b\n"

    async def test_selectors(self, penstock: Penstock) -> None:
        await applied(penstock, "a")
        assert (
            await penstock("get", "deployments", "-l", "team=search", "-o", "name")
        ).stdout == "deployment/a\n"
        assert (await penstock("get", "deployments", "-l", "team!=search", "-o", "name")).stdout == ""
        done = await penstock("get", "deployments", "-l", "=x")
        assert (done.exit_code, "filter term '=x' has no label" in done.stderr) == (1, True)

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("deployments", "x"), 1, "error: there is no deployment 'x'"),
            (("replicas", "x"), 1, "error: there is no deployment 'x'"),
            (("revisions", "x"), 1, "error: there is no deployment 'x'"),
            (("revisions",), 2, "error: get revisions needs the deployment's name"),
            (("replicas", "-l", "a"), 2, "error: --selector is for deployments"),
            (("revisions", "a", "--watch"), 2, "error: --watch is for deployments and replicas"),
        ],
    )
    async def test_errors(
        self, penstock: Penstock, arguments: tuple[str, ...], code: int, message: str
    ) -> None:
        done = await penstock("get", *arguments)
        assert done.exit_code == code
        assert done.stderr.startswith(message)
        assert "Traceback" not in done.output


class TestChange:
    async def test_each_word_does_what_it_says(self, penstock: Penstock, api: ControlApi) -> None:
        await applied(penstock, "a")
        await make_attempt(api, "a")
        for arguments, said in (
            (("scale", "a", "--replicas", "3"), "deployment/a scaled to 3"),
            (("restart", "a"), "deployment/a restarts as revision 2"),
            (
                ("rollout", "undo", "a", "--to-revision", "1"),
                "deployment/a stays as it is: its revision 2 has that spec",
            ),
            (("pause", "a"), "deployment/a paused"),
            (("resume", "a"), "deployment/a resumed"),
            (("drain", "a-1"), "replica/a-1 drains"),
            (("delete", "a"), "deployment/a marked for deletion"),
        ):
            done = await penstock(*arguments)
            assert (done.exit_code, done.stdout) == (0, said + "\n"), done.output
        found = await api.stored(deployments.get, "a")
        assert (found.spec.replicas, found.revision, found.paused) == (3, 2, False)
        assert found.deleted_at is not None
        assert (await api.stored(replicas.get, "a-1")).leaving

    async def test_deleting_what_a_manifest_names(self, penstock: Penstock) -> None:
        await applied(penstock, "a")
        text = MANIFEST.format(name="a") + "---\n" + MANIFEST.format(name="b")
        done = await penstock("delete", "-f", "-", input=text)
        assert done.stdout == "deployment/a marked for deletion\ndeployment/b is not there\n"
        assert (await penstock("delete")).exit_code == 2
        assert (await penstock("delete", "nobody")).exit_code == 1

    async def test_deleting_and_waiting(self, penstock: Penstock, api: ControlApi) -> None:
        await applied(penstock, "a")
        uid = (await api.stored(deployments.get, "a")).uid
        running = asyncio.ensure_future(penstock("delete", "a", "--wait", "--timeout", "30s"))
        async with asyncio.timeout(20):
            while (await api.stored(deployments.get, "a")).deleted_at is None:
                await asyncio.sleep(0.05)
        await api.stored(deployments.remove, uid)
        done = await running
        assert done.stdout == "deployment/a is being deleted\ndeployment/a deleted\n"


CANARY = MANIFEST.replace("strategy: recreate", "strategy: canary, canary: {{percent: 10}}")


class TestRollout:
    async def apply(self, penstock: Penstock, memory: str, *more: str) -> None:
        text = CANARY.format(name="a").replace("8GiB", memory)
        done = await penstock("apply", "-f", "-", *more, input=text)
        assert done.exit_code == 0, done.output

    async def is_stable(self, api: ControlApi, revision: int) -> None:
        uid = (await api.stored(deployments.get, "a")).uid
        await api.stored(deployments.record_rollout, uid, RolloutRecord(revision), now())

    async def test_who_did_what_and_why_is_in_the_history(self, penstock: Penstock, api: ControlApi) -> None:
        await self.apply(penstock, "8GiB")
        await self.is_stable(api, 1)
        await self.apply(penstock, "9GiB", "--reason", "longer answers")
        for arguments, said in (
            (("pause", "a", "--reason", "lunch"), "deployment/a: rollouts paused"),
            (("pause", "a", "--reason", "lunch again"), "deployment/a: rollouts paused"),
            (("resume", "a"), "deployment/a: rollouts resumed"),
            (("promote", "a", "--reason", "as fast as before"), "deployment/a: revision 2 promoted"),
            (("undo", "a", "--reason", "answers in French"), "deployment/a rolled back, as revision 3"),
        ):
            done = await penstock("rollout", *arguments)
            assert (done.exit_code, done.stdout) == (0, said + "\n"), done.output
        assert (await penstock("pause", "a", "--reason", "the night")).exit_code == 0
        me = author()
        back = "rollback to revision 1: answers in French"
        header, *lines = (await penstock("rollout", "history", "a")).stdout.splitlines()
        assert header.split() == ["REVISION", "REPLICAS", "WHAT", "AGE", "AUTHOR", "CAUSE"]
        cells = [re.split(" {3,}", line) for line in lines]
        assert [[number, what, who, why] for number, _, what, _, who, why in cells] == [
            ["3 (current)", "paused", me, "the night"],
            ["3 (current)", "made", me, back],
            ["2", "undone", me, back],
            ["2", "promoted", me, "as fast as before"],
            ["2", "rollouts resumed", me, "-"],
            ["2", "rollouts paused", me, "lunch"],
            ["2", "made", me, "longer answers"],
            ["1", "completed", "penstock", "all wanted replicas were ready"],
            ["1", "made", me, "-"],
        ]
        shown = json.loads((await penstock("rollout", "history", "a", "-o", "json")).stdout)["items"]
        assert [item.get("proven", False) for item in shown] == [True, True, True]
        promoted = shown[1]["events"][2]
        assert promoted.pop("at")
        assert promoted == {
            "type": "REVISION_EVENT_TYPE_PROMOTED",
            "author": me,
            "cause": "as fast as before",
        }

    async def test_undo_says_what_it_does(self, penstock: Penstock, api: ControlApi) -> None:
        """Revision 1 ran everywhere; 2 was never more than a canary, so going back to it is one again."""
        await self.apply(penstock, "8GiB")
        await self.is_stable(api, 1)
        await self.apply(penstock, "9GiB")
        await self.apply(penstock, "10GiB")
        for number, said in (
            ("2", "rolled back, as revision 4, on a canary until `penstock rollout promote a`"),
            ("2", "stays as it is: its revision 4 has that spec"),
            ("1", "rolled back, as revision 5"),
        ):
            done = await penstock("rollout", "undo", "a", "--to-revision", number)
            assert (done.exit_code, done.stdout) == (0, f"deployment/a {said}\n"), done.output

    async def test_what_makes_or_promotes_a_revision_says_that_rollouts_are_paused(
        self, penstock: Penstock, api: ControlApi
    ) -> None:
        await self.apply(penstock, "8GiB")
        await self.is_stable(api, 1)
        await self.apply(penstock, "9GiB")
        await penstock("rollout", "pause", "a")
        for arguments, said in (
            (("promote", "a"), "deployment/a: revision 2 promoted"),
            (("undo", "a", "--to-revision", "1"), "deployment/a rolled back, as revision 3"),
            (("restart", "a"), "deployment/a restarts as revision 4"),
        ):
            done = await penstock("rollout", *arguments)
            still = "; its rollouts stand still until `penstock rollout resume a`\n"
            assert (done.exit_code, done.stdout) == (0, said + still), done.output

    async def test_an_older_revision_is_not_promoted(self, penstock: Penstock, api: ControlApi) -> None:
        await self.apply(penstock, "8GiB")
        await self.is_stable(api, 1)
        await self.apply(penstock, "9GiB")
        assert (await penstock("rollout", "promote", "a", "--revision", "2")).exit_code == 0
        assert (await penstock("rollout", "promote", "a", "--revision", "2")).exit_code == 0
        await self.apply(penstock, "10GiB")
        done = await penstock("rollout", "promote", "a", "--revision", "2")
        why = 'deployment "a" has no canary to promote: revision 2 is not its current one, 3'
        assert (done.exit_code, why in done.stderr) == (1, True), done.output

    async def test_what_nobody_promoted_is_not_said_to_be(self, penstock: Penstock, api: ControlApi) -> None:
        """Going back to what ran everywhere needs no canary, and so there is none to promote."""
        await self.apply(penstock, "8GiB")
        await self.is_stable(api, 1)
        await self.apply(penstock, "9GiB")
        assert (await penstock("rollout", "undo", "a")).stdout == "deployment/a rolled back, as revision 3\n"
        done = await penstock("rollout", "promote", "a")
        why = 'deployment "a" has no canary to promote: revision 3 is rolled out to all replicas already'
        assert (done.exit_code, why in done.stderr) == (1, True), done.output

    async def test_undo_goes_back_to_nothing_that_failed(self, penstock: Penstock, api: ControlApi) -> None:
        """Two revisions in a row failed, and each was taken back to the first."""
        await self.apply(penstock, "8GiB")
        await self.is_stable(api, 1)
        uid = (await api.stored(deployments.get, "a")).uid
        for failing, memory in ((2, "9GiB"), (4, "10GiB")):
            await self.apply(penstock, memory)
            failed = RolloutRecord(failing - 1, failed_revision=failing, failed_message="it died")
            await api.stored(deployments.record_rollout, uid, failed, now())
            done = await penstock("rollout", "undo", "a")
            assert done.stdout == f"deployment/a rolled back, as revision {failing + 1}\n", done.output
            await api.stored(
                deployments.record_rollout, uid, RolloutRecord(failing + 1, failed_revision=failing), now()
            )
        done = await penstock("rollout", "undo", "a")
        why = "before its current one, 5, with another spec than that, but those that failed: 2, 4"
        assert (done.exit_code, why in done.stderr) == (1, True), done.output
        # What ran everywhere after all is as good as another.
        await api.stored(deployments.record_rollout, uid, RolloutRecord(2), now())
        assert (await penstock("rollout", "undo", "a")).stdout == "deployment/a rolled back, as revision 6\n"

    async def test_refusals(self, penstock: Penstock) -> None:
        await self.apply(penstock, "8GiB")
        for arguments, said in (
            (("promote", "a"), 'deployment "a" has no canary to promote: nothing is rolled out'),
            (("undo", "a"), 'deployment "a" has no revision before its current one, 1'),
            (("undo", "a", "--to-revision", "7"), 'deployment "a" has no revision 7; it has 1'),
            (("history", "a", "--revision", "7"), "`penstock rollout history a` lists those it has"),
            (("pause", "x"), "there is no deployment 'x'"),
        ):
            done = await penstock("rollout", *arguments)
            assert (done.exit_code, said in done.stderr) == (1, True), done.output


class TestWait:
    async def make_ready(self, api: ControlApi, *, status: ConditionStatus = ConditionStatus.TRUE) -> None:
        replica = await make_attempt(api, "a")
        await api.stored(runtime.register, "token1", job_id=1, restart_count=0, host="h", port=1, now=now())
        await api.stored(
            runtime.report,
            "token1",
            phase=Phase.READY,
            message="",
            load=Load(),
            exit_code=None,
            last_words="",
            now=now(),
        )
        await api.stored(
            deployments.write_status,
            [
                DeploymentStatus(
                    replica.deployment_uid, 1, (Condition("Ready", status, "Steady", "1 of 1 ready", now()),)
                )
            ],
        )

    async def test_until_it_is_ready(self, penstock: Penstock, api: ControlApi) -> None:
        await applied(penstock, "a")
        running = asyncio.ensure_future(penstock("wait", "a", "--timeout", "30s"))
        await self.make_ready(api)
        done = await running
        assert (done.exit_code, done.stdout) == (0, "deployment/a ready\n")

    async def test_the_time_is_up(self, penstock: Penstock, api: ControlApi) -> None:
        await applied(penstock, "a")
        await self.make_ready(api, status=ConditionStatus.FALSE)
        # Time enough to hear how it stands.
        done = await penstock("wait", "a", "--timeout", "5s")
        assert (done.exit_code, done.stderr) == (
            4,
            "error: deployment/a is not ready after 5 s: 1 of 1 ready\n",
        )

    async def test_for_what_is_not_there(self, penstock: Penstock) -> None:
        done = await penstock("wait", "a")
        assert (done.exit_code, done.stderr) == (1, 'error: there is no deployment "a"\n')
        assert (await penstock("wait", "a", "--for", "deleted")).exit_code == 0

    async def test_a_server_that_is_away_may_come_back(self) -> None:
        done = await command_at("127.0.0.1:1")("wait", "a", "--timeout", "2s")
        assert done.exit_code == 4
        assert "no Penstock server answers at 127.0.0.1:1" in done.stderr


class TestTell:
    async def test_why_events_and_describe(self, penstock: Penstock, api: ControlApi) -> None:
        await applied(penstock, "a")
        replica = await make_attempt(api, "a")
        made = [
            core.Decision("a", "", core.Reason.SCALE_UP, "0 of 1 exist; 1 made"),
            core.Decision("a", "a-1", core.Reason.QUEUED, "queued in Slurm, \x1b[31m[bold]Resources"),
        ]
        (first, _) = await api.stored(decisions.insert, "tick", made, now())
        await api.stored(decisions.bump, [(first.id, 2, now())])
        await api.stored(
            deployments.write_status,
            [
                DeploymentStatus(
                    replica.deployment_uid,
                    1,
                    (Condition("Ready", ConditionStatus.FALSE, "Progressing", "0 of 1 ready", now()),),
                )
            ],
        )
        why = await penstock("why", "a")
        assert why.stdout.startswith("a: 0 of 1 ready")
        assert "Ready   False    Progressing" in why.stdout
        assert "\\x1b[31m[bold]Resources" in why.stdout
        assert "\x1b" not in why.stdout
        assert (await penstock("why", "a", "a-1")).stdout.startswith("a-1: waiting")
        events = (await penstock("events", "a")).stdout.splitlines()
        assert [line.split()[2:4] for line in events[1:]] == [["a", "ScaleUp"], ["a-1", "Queued"]]
        assert "3x" in events[1]
        only = json.loads((await penstock("events", "--replica", "a-1", "-o", "json")).stdout)
        assert [item["replica"] for item in only["items"]] == ["a-1"]
        described = (await penstock("describe", "a")).stdout
        for part in (
            "Labels:      team=search",
            "    strategy: recreate",
            "Ready   False",
            "a-1    Waiting",
            "ScaleUp",
        ):
            assert part in described, described

    async def test_nothing_was_decided(self, penstock: Penstock) -> None:
        assert (await penstock("events")).stderr == "no decisions found\n"
        assert (await penstock("events", "a")).stderr == "no decisions found about a\n"
        assert (await penstock("events", "a", "--replica", "a-1")).stderr == "no decisions found about a-1\n"
        assert (await penstock("why", "a")).stderr == "error: there is no deployment 'a'\n"

    async def test_logs_are_bytes(self, penstock: Penstock, api: ControlApi) -> None:
        await applied(penstock, "a")
        await make_attempt(api, "a")
        folder = api.attempts_folder / "token1"
        folder.mkdir(parents=True)
        (folder / "job.out").write_bytes(b"one\n\xff\x1b[1mtwo")
        assert (await penstock("logs", "a-1")).stdout_bytes == b"one\n\xff\x1b[1mtwo"
        assert (await penstock("logs", "a-1", "--tail", "1")).stdout_bytes == b"\xff\x1b[1mtwo"
        await api.stored(
            attempts.end,
            "token1",
            message="",
            exit_code=0,
            job=None,
            failures=0,
            next_attempt_at=None,
            now=now(),
        )
        assert (await penstock("logs", "a-1", "--follow")).stdout_bytes == b"one\n\xff\x1b[1mtwo"

    async def test_the_cluster(self, penstock: Penstock) -> None:
        shown = (await penstock("cluster")).stdout
        for part in (
            "Penstock 0.0.test",
            "Database answers",
            "Slurm 26.05.5 through fake",
            "short       up",
            "node2   ",
        ):
            assert part in shown, shown
        assert json.loads((await penstock("cluster", "-o", "json")).stdout)["name"] == "fake"

    async def test_models(self, penstock: Penstock) -> None:
        assert (await penstock("models")).stderr == "no models found\n"
        await applied(penstock, "a")
        assert (await penstock("models")).stdout.splitlines()[1].split() == ["a", "a", "0", "generate", "-"]


class Parrot(inference_pb2_grpc.InferenceServiceServicer):
    """Says back what it was asked, a word a chunk."""

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.StreamChatResponse]:
        if request.model not in ("a", "later"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "0 of 1 ready: queued in Slurm, Resources")
        if request.model == "later":
            for position in (2, 2, 1):
                progress = inference_pb2.WaitProgress(position=position, message="0 of 1 ready")
                yield inference_pb2.StreamChatResponse(waiting=progress)
        words = [part.text for message in request.messages for part in message.content]
        words += [f"{request.sampling.max_tokens}", f"{request.sampling.temperature:.1f}"]
        for word in words:
            yield inference_pb2.StreamChatResponse(choices=[inference_pb2.ChatChoice(content=f"{word} ")])
        if "die" in words:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the replica died")
        for tool in request.tools:
            parts = (tool.name, ""), ("", '{"a":'), ("", "1}")
            for name, arguments in parts:
                call = inference_pb2.ToolCall(name=name, arguments=arguments)
                yield inference_pb2.StreamChatResponse(choices=[inference_pb2.ChatChoice(tool_calls=[call])])
        if request.output.json_schema_text:
            shape = inference_pb2.ChatChoice(content=request.output.json_schema_text)
            yield inference_pb2.StreamChatResponse(choices=[shape])
        last = inference_pb2.ChatChoice(finish_reason=inference_pb2.FINISH_REASON_LENGTH)
        usage = inference_pb2.Usage(prompt_tokens=3, completion_tokens=4)
        yield inference_pb2.StreamChatResponse(choices=[last], usage=usage)

    async def Embed(self, request: Any, context: Any) -> inference_pb2.EmbedResponse:
        vectors = [inference_pb2.Embedding(values=[len(text), 0.1]) for text in request.inputs]
        return inference_pb2.EmbedResponse(embeddings=vectors)

    async def StreamGenerate(
        self, request: Any, context: Any
    ) -> AsyncIterator[inference_pb2.StreamGenerateResponse]:
        yield inference_pb2.StreamGenerateResponse(
            choices=[inference_pb2.GenerateChoice(text=request.prompt)]
        )


class TestTalk:
    @pytest_asyncio.fixture
    async def penstock(self) -> AsyncIterator[Penstock]:
        server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(Parrot(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield command_at(f"127.0.0.1:{port}")
        await server.stop(0)

    async def test_a_prompt(self, penstock: Penstock) -> None:
        arguments = ("--system", "be", "--max-tokens", "5", "--temperature", "0.5")
        done = await penstock("chat", "a", "hello", *arguments)
        assert (done.exit_code, done.stdout) == (0, "be hello 5 0.5 \n")
        assert done.stderr == "(stopped at the limit of tokens)\n"

    async def test_standard_input(self, penstock: Penstock) -> None:
        assert (await penstock("chat", "a", input="from a pipe\n")).stdout == "from a pipe 0 0.0 \n"
        done = await penstock("chat", "a", input="")
        assert (done.exit_code, done.stderr) == (2, "error: there is no prompt: standard input is empty\n")

    async def test_tools_and_counts(self, penstock: Penstock, tmp_path: Path) -> None:
        tools = tmp_path / "tools.json"
        tools.write_text('[{"name": "f", "parameters": {"type": "object"}}]')
        done = await penstock("chat", "a", "hello", "--tools", str(tools), "--usage")
        assert (done.exit_code, done.stdout) == (0, 'hello 0 0.0 \nf({"a":1})\n')
        assert done.stderr.splitlines()[-1] == "(3 tokens of prompt, 4 made)"

    async def test_an_answer_of_a_shape(self, penstock: Penstock, tmp_path: Path) -> None:
        schema = tmp_path / "schema.json"
        schema.write_text('{"type": "object"}')
        done = await penstock("chat", "a", "hello", "--json-schema", str(schema))
        assert done.stdout == 'hello 0 0.0 {"type": "object"}\n'

    @pytest.mark.parametrize(
        "text", ["[", "{}", '[{"names": "f"}]', '["f"]', '[{"name": "f", "parameters": []}]']
    )
    async def test_tools_that_are_none(self, penstock: Penstock, tmp_path: Path, text: str) -> None:
        tools = tmp_path / "tools.json"
        tools.write_text(text)
        done = await penstock("chat", "a", "hello", "--tools", str(tools))
        assert (done.exit_code, done.stderr.startswith(f"error: {tools}: ")) == (2, True)

    async def test_embed(self, penstock: Penstock) -> None:
        done = await penstock("embed", "a", "one", "seven")
        assert json.loads(done.stdout) == [[3, 0.1], [5, 0.1]]

    async def test_generate(self, penstock: Penstock) -> None:
        assert (await penstock("generate", "a", "Once")).stdout == "Once\n"

    async def test_no_replica_is_ready(self, penstock: Penstock) -> None:
        done = await penstock("chat", "b", "hello")
        assert (done.exit_code, done.stderr) == (3, "error: 0 of 1 ready: queued in Slurm, Resources\n")

    async def test_a_replica_that_dies_in_the_middle(self, penstock: Penstock) -> None:
        done = await penstock("chat", "later", "hello")
        assert done.stdout == "hello 0 0.0 \n"
        assert done.stderr.splitlines()[:2] == [
            "waiting, position 2: 0 of 1 ready",
            "waiting, position 1: 0 of 1 ready",
        ]
        done = await penstock("chat", "a", "die")
        assert (done.exit_code, done.stdout, done.stderr) == (3, "die 0 0.0 \n", "error: the replica died\n")


async def test_nobody_answers() -> None:
    for arguments in (
        ("get", "deployments"),
        ("chat", "a", "b"),
        ("cluster",),
        ("scale", "a", "--replicas", "1"),
    ):
        done = await command_at("127.0.0.1:1")(*arguments)
        assert done.exit_code == 3, arguments
        assert (
            done.stderr
            == "error: no Penstock server answers at 127.0.0.1:1; is it running there (penstock serve)?\n"
        )


async def test_wrong_usage() -> None:
    penstock = command_at("127.0.0.1:1")
    for arguments in (
        ("scale", "a"),
        ("get", "pods"),
        ("bogus",),
        ("scale", "a", "--replicas", "-1"),
        ("logs",),
    ):
        assert (await penstock(*arguments)).exit_code == 2, arguments
    done = await penstock("--server", "nonsense", "get", "deployments")
    assert (done.exit_code, done.stderr.startswith("error: --server: the server must be host:port")) == (
        2,
        True,
    )


async def test_every_command_explains_itself() -> None:
    penstock = command_at("127.0.0.1:1")
    top = await penstock("--help")
    assert "Exit codes: 0 done; 1" in top.stdout
    for name in (
        "apply", "get", "describe", "why", "events", "logs", "wait", "scale", "restart", "pause", "resume",
        "drain", "delete", "chat", "generate", "embed", "models", "cluster", "serve", "version",
    ):  # fmt: skip
        assert name in top.stdout
        shown = await penstock(name, "--help")
        assert shown.exit_code == 0
        assert f"Examples:\n\n    penstock {name}" in shown.stdout, shown.stdout
    assert "penstock db upgrade" in (await penstock("db", "upgrade", "--help")).stdout
    assert (await penstock("version")).stdout.startswith("penstock ")


DEAF = """
import asyncio
from penstock.cli.connection import run

async def command(server):
    print("begun", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

run("127.0.0.1:1", command)
"""


def _no_database() -> None:
    raise psycopg.OperationalError("the server closed the connection")


HEEDING = ("env", "--default-signal=INT")
"""What a shell starts in the background ignores SIGINT, and so would all that the tests start from there."""


class TestFollowing:
    """Commands that run until they are interrupted, as processes of their own, for only those can be."""

    @pytest_asyncio.fixture
    async def start(
        self, api: ControlApi
    ) -> AsyncIterator[Callable[..., Awaitable[asyncio.subprocess.Process]]]:
        started: list[asyncio.subprocess.Process] = []

        async def start(*arguments: str) -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                *HEEDING,
                sys.executable,
                "-c",
                "from penstock.cli.entry import main; main()",
                *arguments,
                env={**os.environ, "PENSTOCK_SERVER": api.address},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            started.append(process)
            return process

        yield start
        for process in started:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def line(self, process: asyncio.subprocess.Process) -> list[str]:
        assert process.stdout is not None
        return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().split()

    async def test_deployments(self, penstock: Penstock, start: Any) -> None:
        await applied(penstock, "a")
        process = await start("get", "deployments", "--watch")
        assert (await self.line(process))[0] == "NAME"
        assert (await self.line(process))[:2] == ["a", "0/1"]
        await penstock("scale", "a", "--replicas", "3")
        assert (await self.line(process))[:2] == ["a", "0/3"]
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, errors) == (130, b"")

    async def test_replicas(self, penstock: Penstock, start: Any, api: ControlApi) -> None:
        await applied(penstock, "a")
        replica = await make_attempt(api, "a")
        process = await start("get", "replicas", "--watch", "-o", "wide")
        assert (await self.line(process))[0] == "NAME"
        assert (await self.line(process))[:2] == ["a-1", "Waiting"]
        status = ReplicaStatus(replica.uid, ReplicaState.QUEUED, "queued")
        await api.stored(replicas.write_status, [status], now())
        assert (await self.line(process))[:2] == ["a-1", "Queued"]

    async def test_events(self, penstock: Penstock, start: Any, api: ControlApi) -> None:
        process = await start("events", "--follow")
        assert (await self.line(process))[0] == "LAST"
        made = [core.Decision("a", "", core.Reason.SCALE_UP, "0 of 1 exist; 1 made")]
        await api.stored(decisions.insert, "tick", made, now())
        assert (await self.line(process))[2:4] == ["a", "ScaleUp"]

    async def test_an_outage_is_outlived_and_told_once(
        self, penstock: Penstock, start: Any, api: ControlApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await applied(penstock, "a")
        events, watch = await start("events", "--follow"), await start("get", "deployments", "--watch")
        assert (await self.line(events))[0] == "LAST"
        assert (await self.line(watch))[0] == "NAME"
        assert (await self.line(watch))[:2] == ["a", "0/1"]
        with monkeypatch.context() as patched:
            patched.setattr(api.database, "snapshot", _no_database)
            for process in (events, watch):
                told = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
                assert told == (
                    "PostgreSQL does not answer; replicas go on serving, and the call may be repeated; trying again\n"
                )
            made = [core.Decision("a", "", core.Reason.SCALE_UP, "0 of 1 exist; 1 made")]
            await api.stored(decisions.insert, "tick", made, now())
            await api.stored(deployments.scale, "a", 2, now())
        assert (await self.line(events))[2:4] == ["a", "ScaleUp"]
        assert (await self.line(watch))[:2] == ["a", "0/2"]
        for process in (events, watch):
            process.send_signal(signal.SIGINT)
            _, errors = await asyncio.wait_for(process.communicate(), 60)
            assert (process.returncode, errors) == (130, b"")

    async def test_ctrl_c_ends_a_command_that_does_not_hear_of_it(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *HEEDING, sys.executable, "-c", DEAF, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert await self.line(process) == ["begun"]
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 30) == 130
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def test_a_reader_who_has_seen_enough(self, penstock: Penstock, start: Any) -> None:
        await applied(penstock, "a")
        process = await start("get", "deployments", "--watch")
        await self.line(process)
        await self.line(process)
        process._transport.get_pipe_transport(1).close()
        await penstock("scale", "a", "--replicas", "3")
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert await process.stderr.read() == b""
