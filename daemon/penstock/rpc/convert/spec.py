"""Specs. Inward every default is filled in and every quantity is put into its unit; outward a default is left
unset again.

So what someone wrote is what he reads back, in his own spelling, without the defaults that he did not write;
the one exception is `replicas`, which is always shown, because commands change it too. `spec_in(spec_out(spec))
== spec` for every spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from penstock.core import spec as core
from penstock.rpc.quantities import memory_mib, time_limit_s
from penstock.v1 import spec_pb2 as pb

Value = TypeVar("Value")

_TASKS = {
    core.EngineTask.GENERATE: pb.ENGINE_TASK_GENERATE,
    core.EngineTask.EMBED: pb.ENGINE_TASK_EMBED,
}
_STRATEGIES = {
    core.RolloutStrategy.ROLLING_UPDATE: pb.ROLLOUT_STRATEGY_ROLLING_UPDATE,
    core.RolloutStrategy.RECREATE: pb.ROLLOUT_STRATEGY_RECREATE,
    core.RolloutStrategy.CANARY: pb.ROLLOUT_STRATEGY_CANARY,
}
_OUTSIDE_CHANGES = {
    core.OutsideChanges.REPAIR: pb.OUTSIDE_CHANGES_REPAIR,
    core.OutsideChanges.RESPECT: pb.OUTSIDE_CHANGES_RESPECT,
}
_SPREADS = {
    core.NodeSpread.ANY: pb.NODE_SPREAD_UNSPECIFIED,
    core.NodeSpread.SPREAD: pb.NODE_SPREAD_SPREAD,
    core.NodeSpread.PACK: pb.NODE_SPREAD_PACK,
}


def task_out(task: core.EngineTask) -> pb.EngineTask.ValueType:
    """The same task in the contract's words."""
    return _TASKS[task]


def spec_in(spec: pb.DeploymentSpec) -> core.Spec:
    """A spec that has passed validation, with its defaults."""
    default = core.Spec(core.Model())
    return core.Spec(
        model=core.Model(
            path=spec.model.path if spec.model.HasField("path") else None,
            hub=spec.model.hub if spec.model.HasField("hub") else None,
            hub_revision=spec.model.hub_revision,
            served_name=spec.model.served_name,
            adapters=tuple(core.Adapter(one.name, one.path) for one in spec.model.adapters),
            adapter_room=_room_in(spec.model),
        ),
        engine=core.Engine(
            name=spec.engine.name or default.engine.name,
            args=tuple(spec.engine.args),
            env=dict(spec.engine.env),
            task=_key(_TASKS, spec.engine.task) or default.engine.task,
        ),
        environment=_environment_in(spec.environment),
        replicas=spec.replicas if spec.HasField("replicas") else default.replicas,
        resources=core.Resources(
            gpus=spec.resources.gpus,
            gpu_type=spec.resources.gpu_type,
            cpus=spec.resources.cpus or None,
            memory=spec.resources.memory,
            memory_mib=memory_mib(spec.resources.memory) if spec.resources.memory else None,
            nodes=spec.resources.nodes or default.resources.nodes,
        ),
        placement=_placement_in(spec.placements[0]) if spec.placements else default.placement,
        probes=probes_in(spec.probes),
        rollout=_rollout_in(spec.rollout),
        restart=restart_in(spec.restart),
        drain_timeout_s=spec.drain_timeout_s if spec.HasField("drain_timeout_s") else default.drain_timeout_s,
        fallbacks=tuple(map(_placement_in, spec.placements[1:])),
        burst=_burst_in(spec.burst) if spec.HasField("burst") else None,
        node_spread=_key(_SPREADS, spec.node_spread) or default.node_spread,
        handover=_handover_in(spec.handover),
        outside_changes=_key(_OUTSIDE_CHANGES, spec.outside_changes) or default.outside_changes,
        admission=_admission_in(spec.admission),
        routing=_routing_in(spec.routing),
    )


def spec_out(spec: core.Spec) -> pb.DeploymentSpec:
    """The spec as a manifest would have it."""
    default = core.Spec(core.Model())
    message = pb.DeploymentSpec(
        model=pb.Model(
            path=spec.model.path,
            hub=spec.model.hub,
            hub_revision=spec.model.hub_revision,
            served_name=spec.model.served_name,
            adapters=adapters_out(spec.model.adapters),
            adapter_room=_room_out(spec.model),
        ),
        replicas=spec.replicas,
        drain_timeout_s=_unless(spec.drain_timeout_s, default.drain_timeout_s),
    )
    # A part that is wholly as by default is left out, rather than shown empty.
    if spec.engine != default.engine:
        message.engine.CopyFrom(
            pb.Engine(
                name=_unless(spec.engine.name, default.engine.name),
                args=spec.engine.args,
                env=spec.engine.env,
                task=_unless(_TASKS[spec.engine.task], _TASKS[default.engine.task]),
            )
        )
    if spec.environment != default.environment:
        message.environment.CopyFrom(_environment_out(spec.environment))
    if spec.resources != default.resources:
        message.resources.CopyFrom(
            pb.Resources(
                gpus=spec.resources.gpus,
                gpu_type=spec.resources.gpu_type,
                cpus=spec.resources.cpus,
                memory=spec.resources.memory,
                nodes=_unless(spec.resources.nodes, default.resources.nodes),
            )
        )
    if spec.placements != default.placements:
        message.placements.extend(map(_placement_out, spec.placements))
    if spec.probes != default.probes:
        message.probes.CopyFrom(
            pb.Probes(
                startup_timeout_s=_unless(spec.probes.startup_timeout_s, default.probes.startup_timeout_s),
                report_timeout_s=_unless(spec.probes.report_timeout_s, default.probes.report_timeout_s),
            )
        )
    if spec.rollout != default.rollout:
        message.rollout.CopyFrom(_rollout_out(spec.rollout))
    if spec.restart != default.restart:
        message.restart.CopyFrom(
            pb.RestartPolicy(
                backoff_initial_s=_unless(spec.restart.backoff_initial_s, default.restart.backoff_initial_s),
                backoff_max_s=_unless(spec.restart.backoff_max_s, default.restart.backoff_max_s),
                reset_after_s=_unless(spec.restart.reset_after_s, default.restart.reset_after_s),
                max_failures_per_hour=spec.restart.max_failures_per_hour,
            )
        )
    if spec.burst is not None:
        message.burst.CopyFrom(
            pb.Burst(base=spec.burst.base, placements=map(_placement_out, spec.burst.placements))
        )
    if spec.handover != default.handover:
        message.handover.CopyFrom(
            pb.Handover(
                disabled=not spec.handover.enabled,
                margin_s=_unless(spec.handover.margin_s, default.handover.margin_s),
                stagger_percent=_unless(spec.handover.stagger_percent, default.handover.stagger_percent),
            )
        )
    message.node_spread = _SPREADS[spec.node_spread]
    if spec.outside_changes != default.outside_changes:
        message.outside_changes = _OUTSIDE_CHANGES[spec.outside_changes]
    if spec.admission != default.admission:
        message.admission.CopyFrom(
            pb.Admission(
                max_in_flight=_unless(spec.admission.max_in_flight, default.admission.max_in_flight),
                max_held=_unless(spec.admission.max_held, default.admission.max_held),
                max_hold_s=_unless(spec.admission.max_hold_s, default.admission.max_hold_s),
            )
        )
    if spec.routing != default.routing:
        message.routing.CopyFrom(
            pb.Routing(
                session_header=spec.routing.session_header,
                prefix_bytes=_unless(spec.routing.prefix_bytes, default.routing.prefix_bytes),
                max_load_percent=_unless(spec.routing.max_load_percent, default.routing.max_load_percent),
            )
        )
    return message


def adapters_out(adapters: Iterable[core.Adapter]) -> list[pb.Adapter]:
    """The same adapters in the contract's words."""
    return [pb.Adapter(name=one.name, path=one.path) for one in adapters]


def _room_in(model: pb.Model) -> core.AdapterRoom | None:
    if not (model.HasField("adapter_room") or model.adapters):
        return None
    room = model.adapter_room
    return core.AdapterRoom(room.max_rank or None, room.max_in_batch or None)


def _room_out(model: core.Model) -> pb.AdapterRoom | None:
    room = model.adapter_room
    if room is None or (room == core.AdapterRoom() and model.adapters):
        return None
    return pb.AdapterRoom(max_rank=room.max_rank, max_in_batch=room.max_in_batch)


def _rollout_in(rollout: pb.Rollout) -> core.Rollout:
    canary = core.Canary(rollout.canary.percent, rollout.canary.bake_s or None)
    max_surge, max_unavailable = surge_and_unavailable_in(rollout)
    return core.Rollout(
        strategy=_key(_STRATEGIES, rollout.strategy) or core.Rollout().strategy,
        max_surge=max_surge,
        max_unavailable=max_unavailable,
        progress_deadline_s=rollout.progress_deadline_s or None,
        rollback_on_failure=rollout.rollback_on_failure,
        canary=canary if rollout.HasField("canary") else None,
    )


def surge_and_unavailable_in(rollout: pb.Rollout) -> tuple[str, str]:
    """As many above and below the wanted number as a rollout may have: numbers or percents."""
    default = core.Rollout()
    return rollout.max_surge or default.max_surge, rollout.max_unavailable or default.max_unavailable


def _rollout_out(rollout: core.Rollout) -> pb.Rollout:
    default, canary = core.Rollout(), rollout.canary
    return pb.Rollout(
        strategy=_unless(_STRATEGIES[rollout.strategy], _STRATEGIES[default.strategy]),
        max_surge=_unless(rollout.max_surge, default.max_surge),
        max_unavailable=_unless(rollout.max_unavailable, default.max_unavailable),
        progress_deadline_s=rollout.progress_deadline_s,
        rollback_on_failure=rollout.rollback_on_failure,
        canary=None if canary is None else pb.Canary(percent=canary.percent, bake_s=canary.bake_s),
    )


def _burst_in(burst: pb.Burst) -> core.Burst:
    return core.Burst(burst.base, tuple(map(_placement_in, burst.placements)))


def _handover_in(handover: pb.Handover) -> core.Handover:
    default = core.Handover()
    stagger = handover.stagger_percent
    return core.Handover(
        enabled=not handover.disabled,
        margin_s=handover.margin_s if handover.HasField("margin_s") else default.margin_s,
        stagger_percent=stagger if handover.HasField("stagger_percent") else default.stagger_percent,
    )


def _admission_in(admission: pb.Admission) -> core.Admission:
    default = core.Admission()
    return core.Admission(
        max_in_flight=admission.max_in_flight
        if admission.HasField("max_in_flight")
        else default.max_in_flight,
        max_held=admission.max_held if admission.HasField("max_held") else default.max_held,
        max_hold_s=admission.max_hold_s if admission.HasField("max_hold_s") else default.max_hold_s,
    )


def _routing_in(routing: pb.Routing) -> core.Routing:
    default = core.Routing()
    return core.Routing(
        session_header=routing.session_header,
        prefix_bytes=routing.prefix_bytes,
        max_load_percent=routing.max_load_percent or default.max_load_percent,
    )


def _environment_in(environment: pb.Environment) -> core.Environment:
    match environment.WhichOneof("kind"):
        case "venv":
            return core.Environment(venv=environment.venv.path)
        case "module":
            module = environment.module
            return core.Environment(module=core.Module(tuple(module.load), tuple(module.use), module.venv))
        case "apptainer":
            apptainer = environment.apptainer
            return core.Environment(apptainer=core.Apptainer(apptainer.image, tuple(apptainer.binds)))
        case "pyxis":
            return core.Environment(
                pyxis=core.Pyxis(environment.pyxis.image, tuple(environment.pyxis.mounts))
            )
        case _:
            return core.Environment()


def _environment_out(environment: core.Environment) -> pb.Environment:
    if (module := environment.module) is not None:
        return pb.Environment(module=pb.Module(load=module.load, use=module.use, venv=module.venv))
    if (apptainer := environment.apptainer) is not None:
        return pb.Environment(apptainer=pb.Apptainer(image=apptainer.image, binds=apptainer.binds))
    if (pyxis := environment.pyxis) is not None:
        return pb.Environment(pyxis=pb.Pyxis(image=pyxis.image, mounts=pyxis.mounts))
    return pb.Environment(venv=pb.Venv(path=environment.venv or ""))


def _placement_in(placement: pb.Placement) -> core.Placement:
    default = core.Placement()
    return core.Placement(
        partition=placement.partition,
        account=placement.account,
        qos=placement.qos,
        constraint=placement.constraint,
        reservation=placement.reservation,
        time_limit=placement.time_limit,
        time_limit_s=time_limit_s(placement.time_limit) if placement.time_limit else None,
        exclusive=placement.exclusive,
        options=dict(placement.options),
        patience_s=placement.patience_s if placement.HasField("patience_s") else default.patience_s,
    )


def _placement_out(placement: core.Placement) -> pb.Placement:
    return pb.Placement(
        partition=placement.partition,
        account=placement.account,
        qos=placement.qos,
        constraint=placement.constraint,
        reservation=placement.reservation,
        time_limit=placement.time_limit,
        exclusive=placement.exclusive,
        options=placement.options,
        patience_s=_unless(placement.patience_s, core.Placement().patience_s),
    )


def probes_in(probes: pb.Probes) -> core.Probes:
    """With the default for what is unset."""
    default = core.Probes()
    return core.Probes(
        startup_timeout_s=probes.startup_timeout_s or default.startup_timeout_s,
        report_timeout_s=probes.report_timeout_s or default.report_timeout_s,
    )


def restart_in(restart: pb.RestartPolicy) -> core.RestartPolicy:
    """With the default for what is unset."""
    default = core.RestartPolicy()
    return core.RestartPolicy(
        backoff_initial_s=restart.backoff_initial_s or default.backoff_initial_s,
        backoff_max_s=restart.backoff_max_s or default.backoff_max_s,
        reset_after_s=restart.reset_after_s or default.reset_after_s,
        max_failures_per_hour=restart.max_failures_per_hour or None,
    )


def _unless(value: Value, default: Value) -> Value | None:
    """None, which leaves the field unset, where the value is the default."""
    return None if value == default else value


def _key(table: Mapping[Value, int], value: int) -> Value | None:
    """The core word of an enum's value; None for UNSPECIFIED."""
    return next((word for word, number in table.items() if number == value), None)
