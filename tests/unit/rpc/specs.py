"""Any spec that this release carries out, for property tests; each has passed the contract's rules."""

from __future__ import annotations

from hypothesis import strategies as st

from penstock.core import spec as core
from penstock.rpc.quantities import memory_mib, time_limit_s

words = st.text("abcxyz019._-", min_size=1, max_size=12)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=30)
paths = words.map(lambda word: "/" + word)
modules = st.lists(words.map(lambda word: "m" + word), min_size=1, max_size=3).map(tuple)
mounts = st.lists(words.map(lambda word: f"/{word}:/{word}:ro"), max_size=2).map(tuple)
folders = st.lists(paths, max_size=2).map(tuple)
shares = st.one_of(st.integers(1, 9999).map(str), st.integers(1, 100).map(lambda number: f"{number}%"))


@st.composite
def models(draw: st.DrawFn) -> core.Model:
    served_name = draw(st.one_of(st.just(""), words))
    adapters = tuple(
        core.Adapter(f"lora/{name}", draw(paths)) for name in draw(st.lists(words, max_size=3, unique=True))
    )
    some = st.builds(
        core.AdapterRoom, st.sampled_from([None, 8, 512]), st.one_of(st.none(), st.integers(1, 64))
    )
    room = draw(some if adapters else st.one_of(st.none(), some))
    if draw(st.booleans()):
        return core.Model(
            path="/" + draw(words), served_name=served_name, adapters=adapters, adapter_room=room
        )
    return core.Model(
        hub="owner/" + draw(words.filter(lambda word: word[0].isalnum())),
        hub_revision=draw(words),
        served_name=served_name,
        adapters=adapters,
        adapter_room=room,
    )


@st.composite
def resources(draw: st.DrawFn) -> core.Resources:
    memory = draw(st.one_of(st.just(""), st.sampled_from(["8GiB", "16G", "900M", "1TB", "64Ki"])))
    gpus = draw(st.integers(0, 64))
    return core.Resources(
        gpus=gpus,
        gpu_type=draw(st.one_of(st.just(""), words)) if gpus else "",
        cpus=draw(st.one_of(st.none(), st.integers(1, 4096))),
        memory=memory,
        memory_mib=memory_mib(memory) if memory else None,
        nodes=draw(st.integers(1, 1024)),
    )


@st.composite
def placements(draw: st.DrawFn) -> core.Placement:
    time_limit = draw(st.one_of(st.just(""), st.sampled_from(["4h", "90", "2-12:00:00", "1:30"])))
    optional = st.one_of(st.just(""), words)
    return core.Placement(
        partition=draw(optional.filter(lambda word: not word.startswith((".", "-")))),
        account=draw(optional),
        qos=draw(optional),
        constraint=draw(optional),
        reservation=draw(optional),
        time_limit=time_limit,
        time_limit_s=time_limit_s(time_limit) if time_limit else None,
        exclusive=draw(st.booleans()),
        options=draw(st.dictionaries(st.sampled_from(["licenses", "nice", "nodelist"]), texts)),
    )


@st.composite
def rollouts(draw: st.DrawFn) -> core.Rollout:
    return core.Rollout(
        strategy=draw(st.sampled_from([core.RolloutStrategy.ROLLING_UPDATE, core.RolloutStrategy.RECREATE])),
        max_surge=draw(shares),
        max_unavailable=draw(st.one_of(st.just("0"), shares)),
    )


@st.composite
def restarts(draw: st.DrawFn) -> core.RestartPolicy:
    first = draw(st.integers(1, 3600))
    return core.RestartPolicy(
        first,
        draw(st.integers(first, 86400)),
        draw(st.integers(1, 86400)),
        draw(st.none() | st.integers(1, 10000)),
    )


specs = st.builds(
    core.Spec,
    model=models(),
    engine=st.builds(
        core.Engine,
        name=st.sampled_from(["vllm", "standin"]),
        args=st.lists(texts.filter(bool).map(lambda text: "--x-" + text), max_size=4).map(tuple),
        env=st.dictionaries(st.sampled_from(["A", "OMP_NUM_THREADS", "_x9"]), texts),
        task=st.sampled_from(core.EngineTask),
    ),
    environment=st.one_of(
        st.builds(core.Environment),
        st.builds(core.Environment, venv=paths),
        st.builds(core.Environment, module=st.builds(core.Module, modules, folders, st.just("") | paths)),
        st.builds(core.Environment, apptainer=st.builds(core.Apptainer, paths, mounts)),
        st.builds(core.Environment, pyxis=st.builds(core.Pyxis, words.map(lambda word: "i" + word), mounts)),
    ),
    replicas=st.integers(0, 10000),
    resources=resources(),
    placement=placements(),
    probes=st.builds(core.Probes, st.integers(10, 86400), st.integers(10, 3600)),
    rollout=rollouts(),
    restart=restarts(),
    drain_timeout_s=st.integers(0, 86400),
    admission=st.builds(core.Admission, st.integers(1, 100000), st.integers(0, 10000), st.integers(0, 3600)),
    routing=st.just(core.Routing())
    | st.builds(
        core.Routing,
        st.sampled_from(["x-session-id", "x-user"]),
        st.just(0) | st.integers(64, 16384),
        st.integers(100, 1000),
    ),
).filter(
    lambda spec: spec.engine.name == "vllm" or not (spec.environment.apptainer or spec.environment.pyxis)
)
