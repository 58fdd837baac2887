"""Whether a request is well-formed: the contract's own field rules, and the rules between fields that it states
in words.

Pure: message in, violations out, in the manifest's own paths. Knows the protos, and neither core nor the
cluster (`limits` does that). The rule guarded here: what this release does not carry out is refused by name,
never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from penstock import contract
from penstock.contract import quoted
from penstock.rpc.convert.spec import probes_in, restart_in, surge_and_unavailable_in
from penstock.rpc.quantities import time_limit_s
from penstock.rpc.refusals import Fault, Violation, refuse
from penstock.slurm.options import KNOWN_OPTIONS, RESERVED_OPTIONS
from penstock.v1 import deployment_pb2, metadata_pb2, spec_pb2

CONTROL = frozenset(map(chr, range(32))) | {"\x7f"}
_NOT_STORABLE = frozenset("\0")
"""In PostgreSQL, as text and in JSON. The halves of surrogate pairs, too, but no message can bring those."""

_ENGINE_ARGS = {
    "model": "spec.model.path or spec.model.hub",
    "served-model-name": "spec.model.served_name",
    "revision": "spec.model.hub_revision",
    "host": None,
    "port": None,
    "uds": None,
    "api-key": None,
    "ssl-keyfile": None,
    "ssl-certfile": None,
    "ssl-ca-certs": None,
    "root-path": None,
    "grpc": None,
    "headless": "spec.resources.nodes",
    "nnodes": "spec.resources.nodes",
    "node-rank": "spec.resources.nodes",
    "master-addr": "spec.resources.nodes",
    "master-port": "spec.resources.nodes",
}
"""Engine arguments that Penstock sets itself or that cut it off from the engine -> the field to use instead."""

_SECRET_ENGINE_ARGS = ("hf-token",)
"""Engine arguments whose value is a secret, which everybody on the node would read in the list of processes."""

_SHORT_ENGINE_ARGS = ("-n", "-r")
"""Short forms of nnodes and node-rank."""

_ENGINE_ENV = ("PENSTOCK_", "VLLM_API_KEY")
"""Beginnings of environment variables that are Penstock's own."""

_OPTION_FIELDS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "reservation": "reservation",
    "time": "time_limit",
    "exclusive": "exclusive",
    "gres": "resources.gpus",
    "gpus": "resources.gpus",
    "gpus-per-node": "resources.gpus",
    "gpus-per-socket": "resources.gpus",
    "gpus-per-task": "resources.gpus",
    "cpus-per-task": "resources.cpus",
    "cpus-per-gpu": "resources.cpus",
    "mincpus": "resources.cpus",
    "mem": "resources.memory",
    "mem-per-cpu": "resources.memory",
    "mem-per-gpu": "resources.memory",
    "nodes": "resources.nodes",
}
"""sbatch options with a field of their own, in the placement or (with a point) in the spec."""

_OWN_OPTIONS = {
    "ntasks": "a replica is one task a node",
    "ntasks-per-node": "a replica is one task a node",
    "ntasks-per-core": "a replica is one task a node",
    "ntasks-per-gpu": "a replica is one task a node",
    "ntasks-per-socket": "a replica is one task a node",
    "kill-on-invalid-dep": "Penstock's lock against doubled submissions uses dependency",
    "open-mode": "Penstock sets output",
    "signal": "it tells the agent to drain before the time limit",
    "requeue": "the controller restarts replicas",
    "no-requeue": "the controller restarts replicas",
    "verbose": "Penstock reads the output",
    **RESERVED_OPTIONS,
}
"""sbatch options that Penstock sets itself or cannot do without, and why."""


def check(request: Message) -> None:
    """Raises Refused for what the field rules say of a request, and for what PostgreSQL cannot hold."""
    _refuse_crowd(request)
    refuse([*_field_rules(request), *_control_characters(request, "", _NOT_STORABLE)])


def check_around(
    request: deployment_pb2.ApplyDeploymentRequest | deployment_pb2.PlanDeploymentRequest,
) -> None:
    """The same for a request whose deployment `check_deployment` judges later: what it must be depends on the update
    mask. What PostgreSQL cannot hold it must not have anywhere, for the store is asked before.
    """
    _refuse_crowd(request)
    bare = type(request).FromString(request.SerializeToString())
    bare.ClearField("deployment")
    around = [found for found in _field_rules(bare) if found.field != "deployment"]
    refuse(
        [
            *around,
            *_control_characters(bare, "", _NOT_STORABLE),
            *_control_characters(request.deployment, "", _NOT_STORABLE),
        ]
    )


def _refuse_crowd(request: Message) -> None:
    """Before anything looks through it."""
    if crowd := contract.too_many_parts(request):
        refuse([Violation(crowd.field, crowd.sentence)])


def check_report(request: Message) -> None:
    """The same for what agents say, which may hold anything that an engine printed: its reader mends that."""
    refuse([*_field_rules(request)])


def check_name(metadata: metadata_pb2.Metadata) -> None:
    """Raises Refused when there can be no deployment of this name."""
    refuse([Violation(f"metadata.{found.field}", found.message) for found in _field_rules(metadata)])


def check_deployment(deployment: deployment_pb2.Deployment) -> None:
    """Raises Refused when the deployment is not one that this release can carry out on any cluster."""
    violations = [*_field_rules(deployment)]
    named = {violation.field for violation in violations}
    between = [*_rules_between(deployment.spec), *_adapter_names(deployment)]
    violations += [found for found in between if found.field not in named]
    violations += _control_characters(deployment, "")
    # What a part that comes later holds is not looked at.
    later = [*_not_supported(deployment.spec)]
    violations = [
        found for found in violations if not found.field.startswith(tuple(part.field for part in later))
    ]
    refuse(violations + later)


def warnings(deployment: deployment_pb2.Deployment) -> list[str]:
    """What is legal and probably not meant, in sentences."""
    said = []
    spec = deployment.spec
    startup_s = probes_in(spec.probes).startup_timeout_s
    for path, placement in placements_of(spec):
        if placement.time_limit and time_limit_s(placement.time_limit) <= startup_s:
            said.append(
                f"{path}.time_limit: {quoted(placement.time_limit)} is not longer than the"
                f" {startup_s} s that a replica may take to become ready (spec.probes.startup_timeout_s)"
            )
        said += [
            f"{path}.options[{quoted(option)}]: is no option of sbatch that this release knows of"
            for option in sorted(placement.options)
            if option not in KNOWN_OPTIONS
        ]
    return said


def placements_of(spec: spec_pb2.DeploymentSpec) -> Iterator[tuple[str, spec_pb2.Placement]]:
    """Every placement of the spec, with its path."""
    for listed, path in (
        (spec.placements, "spec.placements"),
        (spec.burst.placements, "spec.burst.placements"),
    ):
        for index, placement in enumerate(listed):
            yield f"{path}[{index}]", placement


def _field_rules(message: Message) -> Iterator[Violation]:
    for broken in contract.broken_rules(message):
        yield Violation(broken.field, broken.sentence)


def _rules_between(spec: spec_pb2.DeploymentSpec) -> Iterator[Violation]:
    """What holds between fields, and what is Penstock's own to set."""
    if spec.model.hub_revision and not spec.model.HasField("hub"):
        yield Violation(
            "spec.model.hub_revision", "is only for a model from the hub; spec.model.hub is not set"
        )
    yield from _rollout(spec)
    restart = restart_in(spec.restart)
    first, longest = restart.backoff_initial_s, restart.backoff_max_s
    if first > longest:
        yield Violation(
            "spec.restart.backoff_initial_s",
            f"must be at most spec.restart.backoff_max_s, {longest}, not {first}",
        )
    if spec.resources.gpu_type and not spec.resources.gpus:
        yield Violation(
            "spec.resources.gpu_type", f"is {quoted(spec.resources.gpu_type)}, but spec.resources.gpus is 0"
        )
    yield from _engine(spec.engine)
    for kind in ("apptainer", "pyxis"):
        if spec.engine.name == "standin" and spec.environment.HasField(kind):
            yield Violation(
                f"spec.environment.{kind}",
                "is for the engine vllm; the stand-in is Penstock's own program and runs in no container",
            )
    for path, placement in placements_of(spec):
        if placement.time_limit:
            try:
                time_limit_s(placement.time_limit)
            except ValueError as error:
                yield Violation(f"{path}.time_limit", f"{error}, not {quoted(placement.time_limit)}")
        for option in sorted(placement.options):
            yield from _option(path, option)
    yield from _margin(spec)
    routing = spec.routing
    if routing.HasField("max_load_percent") and not (routing.session_header or routing.prefix_bytes):
        yield Violation(
            "spec.routing.max_load_percent",
            "is only with spec.routing.session_header or spec.routing.prefix_bytes",
        )


def _adapter_names(deployment: deployment_pb2.Deployment) -> Iterator[Violation]:
    """Each is a model of its own, so no two may be called alike. Other deployments' names are the store's to know."""
    model = deployment.spec.model
    taken = {deployment.metadata.name: "the deployment's own name"}
    if model.served_name:
        taken.setdefault(model.served_name, "spec.model.served_name")
    for index, adapter in enumerate(model.adapters):
        path = f"spec.model.adapters[{index}].name"
        if (owner := taken.setdefault(adapter.name, path)) != path:
            yield Violation(
                path, f"{quoted(adapter.name)} is {owner} too; each model needs a name of its own"
            )


def _margin(spec: spec_pb2.DeploymentSpec) -> Iterator[Violation]:
    """A successor that is always due would be followed by the next one at once."""
    handover = spec.handover
    if handover.disabled or not handover.HasField("margin_s"):
        return
    for path, placement in placements_of(spec):
        try:
            limit_s = time_limit_s(placement.time_limit) if placement.time_limit else None
        except ValueError:
            continue  # That is a violation of its own.
        if limit_s is not None and handover.margin_s >= limit_s:
            yield Violation(
                "spec.handover.margin_s",
                f"must be shorter than {path}.time_limit, {quoted(placement.time_limit)}"
                f" ({limit_s} s), not {handover.margin_s}",
            )
            return


def _rollout(spec: spec_pb2.DeploymentSpec) -> Iterator[Violation]:
    rollout = spec.rollout
    if all(map(_nothing, surge_and_unavailable_in(rollout))):
        yield Violation("spec.rollout.max_surge", "must not be zero while spec.rollout.max_unavailable is zero too:"
                        " a rollout could never begin")  # fmt: skip
    is_canary = rollout.strategy == spec_pb2.ROLLOUT_STRATEGY_CANARY
    if is_canary and not rollout.HasField("canary"):
        yield Violation(
            "spec.rollout.canary", "must be given with the strategy canary, such as {percent: 10}"
        )
    if rollout.HasField("canary") and not is_canary:
        yield Violation("spec.rollout.canary", "is only for the strategy canary (spec.rollout.strategy)")
    startup_s = probes_in(spec.probes).startup_timeout_s
    if rollout.progress_deadline_s > startup_s:
        yield Violation(
            "spec.rollout.progress_deadline_s",
            f"must be at most spec.probes.startup_timeout_s, {startup_s}, after which the job is cancelled;"
            f" not {rollout.progress_deadline_s}",
        )


def _nothing(share: str) -> bool:
    return share.rstrip("%").strip("0") == ""


def _engine(engine: spec_pb2.Engine) -> Iterator[Violation]:
    for index, argument in enumerate(engine.args):
        path = f"spec.engine.args[{index}]"
        if index == 0 and argument and not argument.startswith("-"):
            yield Violation(path, f"must be an option such as --max-model-len, not {quoted(argument)}")
        option = argument.partition("=")[0]  # Its value may be a secret, and is not said.
        if option in _SHORT_ENGINE_ARGS:
            yield Violation(path, f"{quoted(option)} is set by Penstock itself; use {_ENGINE_ARGS['nnodes']}")
        if not option.startswith("--"):
            continue
        # The engine takes `--max_model_len`, `--port=1` and unambiguous beginnings (`--por 1`) too.
        owner = _owner(option[2:].replace("_", "-"), [*_ENGINE_ARGS, *_SECRET_ENGINE_ARGS], shortest=3)
        if owner in _SECRET_ENGINE_ARGS:
            yield Violation(
                path,
                f"{quoted(option)} would put a secret on a command line; keep it in a file that its user alone may"
                " read, and name that file in spec.engine.env.HF_TOKEN_PATH",
            )
        elif owner is not None:
            instead = f"; use {field}" if (field := _ENGINE_ARGS[owner]) else ""
            yield Violation(path, f"{quoted(option)} is set by Penstock itself{instead}")
    for variable in sorted(engine.env):
        if variable.startswith(_ENGINE_ENV):
            yield Violation(f"spec.engine.env[{quoted(variable)}]", "is set by Penstock itself")


def _option(path: str, option: str) -> Iterator[Violation]:
    # sbatch takes unambiguous beginnings of long options (`--outp`), so those are refused with the whole.
    where = f"{path}.options[{quoted(option)}]"
    if (owner := _owner(option, [*_OPTION_FIELDS, *_OWN_OPTIONS], shortest=1)) is None:
        return
    called = (
        "cannot be given here"
        if owner == option
        else f"is a beginning of {owner}, which cannot be given here"
    )
    if owner in _OPTION_FIELDS:
        field = _OPTION_FIELDS[owner]
        yield Violation(where, f"{called}; use {'spec' if '.' in field else path}.{field}")
    else:
        yield Violation(where, f"{called}: {_OWN_OPTIONS[owner]}")


def _owner(name: str, reserved: list[str], *, shortest: int) -> str | None:
    """The reserved name that this is, or the first that it is a beginning of."""
    if name in reserved:
        return name
    return next((owner for owner in reserved if len(name) >= shortest and owner.startswith(name)), None)


def _control_characters(
    message: Message, prefix: str, banned: frozenset[str] = CONTROL
) -> Iterator[Violation]:
    """Characters that no shell, file name or table should have to carry. Line ends are for arguments and
    variables only.
    """
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        for place, item in _items(path, field, value):
            if isinstance(item, Message):
                yield from _control_characters(item, f"{place}.", banned)
            elif isinstance(item, str):
                allowed = "\n\t" if path in ("spec.engine.args", "spec.engine.env") else ""
                if found := sorted(banned & set(item) - set(allowed)):
                    yield Violation(place, f"must not have the control character \\x{ord(found[0]):02x}")


def _items(path: str, field: FieldDescriptor, value: Any) -> Iterator[tuple[str, Any]]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key, item in sorted(value.items()):
            yield f"{path}[{quoted(key)}]", key
            yield f"{path}[{quoted(key)}]", item
    elif field.is_repeated:
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    else:
        yield path, value


def _not_supported(spec: spec_pb2.DeploymentSpec) -> Iterator[Violation]:
    """The parts of the contract that come later, by name."""
    present = {
        "spec.scaling": spec.HasField("scaling"),
    }
    for path, is_present in present.items():
        if is_present:
            yield Violation(path, "not supported yet", Fault.NOT_SUPPORTED_YET)
