"""Slurm's text, one table for each kind; and what no text may do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.jobs import JobState
from penstock.core.slurm_words import ENDED_STATES, WAITING_STATES
from penstock.slurm import parse
from penstock.slurm.parse import Marks, ParseError

MARKS = Marks(field="\x1ff1e1d\x1f", row="\x1er0w\x1e")


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("RUNNING", JobState.RUNNING),
        ("R", JobState.RUNNING),
        (" running ", JobState.RUNNING),
        ("RUNNING+COMPLETING", JobState.COMPLETING),
        ("COMPLETED+COMPLETING", JobState.COMPLETING),
        ("CANCELLED+COMPLETING", JobState.COMPLETING),
        ("RUNNING+CONFIGURING", JobState.CONFIGURING),
        ("PENDING+REQUEUED", JobState.REQUEUED),
        ("PENDING+REQUEUE_HOLD", JobState.REQUEUE_HOLD),
        ("PENDING+REQUEUED+SPECIAL_EXIT", JobState.REQUEUED),
        ("RUNNING+SIGNALING", JobState.SIGNALING),
        ("RUNNING+SOMETHING_NEW", JobState.RUNNING),
        ("CANCELLED by 1000", JobState.CANCELLED),
        ("CG", JobState.COMPLETING),
        ("PD", JobState.PENDING),
        ("OOM", JobState.OUT_OF_MEMORY),
        ("NODE_FAIL", JobState.NODE_FAIL),
        ("BRAND_NEW", JobState.UNKNOWN),
        ("", JobState.UNKNOWN),
    ],
)
def test_state(text: str, state: JobState) -> None:
    assert parse.parse_state(text) is state


def test_every_state_has_its_own_name_and_at_most_one_compact_form() -> None:
    assert all(parse.parse_state(state.value) is state for state in JobState)
    assert len(set(parse.COMPACT_STATES.values())) == len(parse.COMPACT_STATES)


def test_an_unknown_state_is_neither_waiting_nor_ended() -> None:
    assert JobState.UNKNOWN not in ENDED_STATES | WAITING_STATES


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10:00", 600),
        ("1:00:00", 3600),
        ("01:00:00", 3600),
        ("1-02:03:04", 93784),
        ("1-02", 93600),
        ("2-00:30", 174600),
        ("0:05", 5),
        ("5", 300),
        ("365-00:00:00", 365 * 86400),
        ("UNLIMITED", None),
        ("INFINITE", None),
        ("NOT_SET", None),
        ("NONE", None),
        ("N/A", None),
        ("", None),
    ],
)
def test_duration(text: str, seconds: int | None) -> None:
    assert parse.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["1:2:3:4", "ten", "-5", "1-", "1-2:3:4:5", "1.5", "0x10", "٣:٠٠"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ParseError, match="not a duration"):
        parse.parse_duration(text)


@given(st.integers(0, 400 * 86400))
def test_every_duration_that_slurm_prints_is_read_back(seconds: int) -> None:
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    printed = (
        f"{hours:02}:{rest // 60:02}:{rest % 60:02}" if days or hours else f"{rest // 60}:{rest % 60:02}"
    )
    assert parse.parse_duration(f"{days}-{printed}" if days else printed) == seconds


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-22T10:51:21", datetime(2026, 11, 22, 10, 51, 21, tzinfo=UTC)),
        (" 2026-01-02T03:04:05\n", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("N/A", None),
        ("Unknown", None),
        ("None", None),
        ("(null)", None),
    ],
)
def test_time(text: str, time: datetime | None) -> None:
    assert parse.parse_time(text) == time


@pytest.mark.parametrize("text", ["tomorrow", "10:51:21", "2026-13-01T00:00:00", "1795344711"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ParseError, match="not a time"):
        parse.parse_time(text)


@pytest.mark.parametrize(
    ("text", "exit_code", "exit_signal"),
    [
        ("0:0", 0, None),
        ("3:0", 3, None),
        ("0:9", None, 9),
        ("137:0", 137, None),
        ("0:53", None, 53),
        # 22.05's squeue prints the wait status itself.
        ("0", 0, None),
        ("768", 3, None),
        ("9", None, 9),
        ("139", None, 11),  # with the core-dump flag
        ("35072", 137, None),
    ],
)
def test_exit(text: str, exit_code: int | None, exit_signal: int | None) -> None:
    assert parse.parse_exit(text) == (exit_code, exit_signal)


@pytest.mark.parametrize("text", ["", "ok", "1:", ":1", "1:2:3"])
def test_what_is_no_exit(text: str) -> None:
    with pytest.raises(ParseError, match="not an exit code"):
        parse.parse_exit(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("(null)", ()),
        ("node1", ("node1",)),
        ("node[1-2]", ("node1", "node2")),
        ("gpu[01-03,7],login1", ("gpu01", "gpu02", "gpu03", "gpu7", "login1")),
        ("n[098-101]", ("n098", "n099", "n100", "n101")),
        ("r[1-2]n[1-2]", ("r1n1", "r1n2", "r2n1", "r2n2")),
        ("a[1]-ib", ("a1-ib",)),
        ("cn-1,cn-2", ("cn-1", "cn-2")),
    ],
)
def test_nodes(text: str, names: tuple[str, ...]) -> None:
    assert parse.expand_nodes(text) == names


@pytest.mark.parametrize("text", ["n[1-2", "n1]", "n[a-b]", "n[]", "n[2-", ",", "n[1-999999999]", "n[1--2]"])
def test_what_is_no_node_list(text: str) -> None:
    with pytest.raises(ParseError):
        parse.expand_nodes(text)


@given(st.text(alphabet="n0123456789[]-,", max_size=12))
def test_a_node_list_is_read_or_refused(text: str) -> None:
    try:
        names = parse.expand_nodes(text)
    except ParseError:
        return
    assert all(name and not set(name) & set("[],") for name in names)


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("", {}),
        ("(null)", {}),
        ("gpu:2", {"": 2}),
        ("gpu", {"": 1}),
        ("gpu:a100:4", {"a100": 4}),
        ("gpu:a100", {"a100": 1}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:tesla:2(S:0),gpu:kepler:2(S:1)", {"tesla": 2, "kepler": 2}),
        ("gpu:a100:2(IDX:0-1)", {"a100": 2}),
        ("gpu:a100:2(IDX:0,2),shard:a100:0(0/8,0/8)", {"a100": 2}),
        ("gpu:(null):0(IDX:N/A)", {"": 0}),
        ("gpu:1,gpu:2", {"": 3}),
        ("shard:8,craynetwork:4", {}),
        ("gpu:4K", {"": 4096}),
        ("gpu:1g.5gb:7", {"1g.5gb": 7}),
    ],
)
def test_gpus(text: str, gpus: dict[str, int]) -> None:
    assert parse.parse_gpus(text) == gpus


def test_what_is_no_count_of_gpus() -> None:
    with pytest.raises(ParseError, match="not a count of GPUs"):
        parse.parse_gpus("gpu:a100:many")


# Rows --------------------------------------------------------------------------------------------------------

ROW = {
    "JobID": "7",
    "State": "RUNNING",
    "Reason": "None",
    "Partition": "gpu",
    "NodeList": "node1",
    "SubmitTime": "2026-11-22T10:51:21",
    "StartTime": "2026-11-22T10:51:23",
    "EndTime": "2026-11-22T11:51:23",
    "TimeLimit": "1:00:00",
    "exit_code": "0:0",
    "RestartCnt": "2",
    "Name": "chat-1",
    "Comment": "(null)",
}


def printed(*rows: dict[str, str]) -> str:
    """What squeue prints: a header and rows, each ended by the mark and a newline."""
    header = dict.fromkeys(parse.JOB_FIELDS, "HEADER")
    lines = [MARKS.field.join(row[name] for name in parse.JOB_FIELDS) for row in (header, *rows)]
    return "".join(f"{line}{MARKS.row}\n" for line in lines)


def test_a_row_becomes_a_job() -> None:
    (job,) = parse.parse_jobs(printed(ROW), MARKS)
    assert (job.job_id, job.name, job.comment, job.reason, job.nodes) == (7, "chat-1", "", "", "node1")
    assert (job.state, job.state_text, job.restarts, job.time_limit_s) == (
        JobState.RUNNING,
        "RUNNING",
        2,
        3600,
    )
    assert (job.exit_code, job.exit_signal) == (None, None), "it has not ended"
    assert job.started_at == datetime(2026, 11, 22, 10, 51, 23, tzinfo=UTC)


def test_a_header_alone_is_an_empty_queue() -> None:
    assert parse.parse_jobs(printed(), MARKS) == ()


def test_nothing_at_all_is_no_queue() -> None:
    with pytest.raises(ParseError, match="expected a header"):
        parse.parse_jobs("", MARKS)


def test_every_cut_of_an_output_is_refused_or_ends_where_a_row_ends() -> None:
    whole = printed(ROW, {**ROW, "JobID": "8"})
    ends = {whole.index(MARKS.row, start) + len(MARKS.row) for start in _starts(whole)}
    for length in range(len(whole)):
        if {length, length - 1} & ends:
            continue
        with pytest.raises(ParseError):
            parse.parse_jobs(whole[:length], MARKS)


def _starts(text: str) -> list[int]:
    return [index for index in range(len(text)) if text.startswith(MARKS.row, index)]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(("JobID", text) for text in ("seven", "(null)", "", "N/A", "0", "-1")),
        ("TimeLimit", "soon"),
        ("StartTime", "later"),
        ("RestartCnt", "x"),
    ],
)
def test_one_unreadable_field_fails_the_listing(field: str, text: str) -> None:
    with pytest.raises(ParseError):
        parse.parse_jobs(printed(ROW, {**ROW, field: text}), MARKS)


def test_a_row_with_a_field_too_many_fails_the_listing() -> None:
    with pytest.raises(ParseError, match="expected 13 fields, got 14"):
        parse.parse_jobs(printed({**ROW, "Name": f"a{MARKS.field}b"}), MARKS)


@given(st.text(), st.text())
def test_no_name_or_comment_without_the_marks_changes_a_row(name: str, comment: str) -> None:
    jobs = parse.parse_jobs(printed({**ROW, "Name": name, "Comment": comment}, {**ROW, "JobID": "8"}), MARKS)
    assert [(job.job_id, job.name) for job in jobs] == [(7, name), (8, "chat-1")]
    assert jobs[0].comment == ("" if comment == "(null)" else comment)


def test_the_format_asks_for_full_length_and_marks() -> None:
    marks = Marks(field="~f~", row="~r~")
    assert parse.format_option(("JobID", "Name", "Comment"), marks) == "JobID:~f~,Name:~f~,Comment:~r~"


def test_nodes_of_several_partitions_are_one_node() -> None:
    def row(partition: str) -> str:
        values = ["node1", partition, "mixed+drain", "3/4/1/8", "16000", "1234", "gpu:a100:2(S:0)"]
        return MARKS.field.join([*values, "gpu:a100:1(IDX:0)", "fast,ib", "disk | broken, 'again'"])

    header = MARKS.field.join(parse.NODE_FIELDS)
    output = "".join(f"{line}{MARKS.row}\n" for line in (header, row("gpu*"), row("cpu")))
    (node,) = parse.parse_nodes(output, MARKS)
    assert (node.name, node.state, node.partitions) == ("node1", "MIXED+DRAIN", ("cpu", "gpu"))
    assert (node.cpus, node.cpus_allocated, node.memory_mib, node.memory_allocated_mib) == (8, 3, 16000, 1234)
    assert (dict(node.gpus), node.gpus_allocated, node.features) == ({"a100": 2}, 1, ("fast", "ib"))
    assert node.reason == "disk | broken, 'again'"
    assert not node.usable


# scontrol ----------------------------------------------------------------------------------------------------

PARTITION = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=a,b AllowQos=ALL Default=YES QoS=N/A DefaultTime=01:00:00"
    " MaxNodes=4 MaxTime=7-00:00:00 Nodes=node[1-2] State=UP TotalCPUs=16 TotalNodes=2 TRES=cpu=16,mem=32000M"
)


def test_partition() -> None:
    (partition,) = parse.parse_partitions(PARTITION + "\n")
    assert (partition.name, partition.up, partition.is_default, partition.max_nodes) == ("gpu", True, True, 4)
    assert (partition.max_time_s, partition.default_time_s) == (7 * 86400, 3600)
    assert partition.nodes == ("node1", "node2")
    assert (partition.allowed_accounts, partition.allowed_qos) == (("a", "b"), None)


def test_a_partition_that_lacks_a_field() -> None:
    with pytest.raises(ParseError, match="a partition without 'MaxTime'"):
        parse.parse_partitions(PARTITION.replace("MaxTime=7-00:00:00 ", ""))


def test_no_partitions() -> None:
    assert parse.parse_partitions("No partitions in the system\n") == ()


def test_config() -> None:
    text = (
        "Configuration data as of 2026\nClusterName = c1\nMessageTimeout = 10 sec\nSLURM_VERSION = 22.05.8\n"
    )
    config = parse.parse_config(text)
    assert parse.parse_seconds(config["MessageTimeout"]) == 10
    with pytest.raises(ParseError, match="no SLURM_VERSION"):
        parse.parse_config(text.replace("SLURM_VERSION", "VERSION"))
