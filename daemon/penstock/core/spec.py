"""What someone wants served: a deployment's spec, as the planner and the script renderer read it.

The same shape as `spec.proto`, less what this release refuses by name, with every default filled in and every quantity
in its unit. Nothing here validates: a spec that reaches this file has passed the contract's field rules and the
cluster's limits.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class EngineTask(enum.StrEnum):
    """What the engine is started to do."""

    GENERATE = "generate"
    EMBED = "embed"


class RolloutStrategy(enum.StrEnum):
    """How replicas of an old revision give way to new ones."""

    ROLLING_UPDATE = "rolling-update"
    RECREATE = "recreate"
    CANARY = "canary"


class OutsideChanges(enum.StrEnum):
    """What is done when somebody else cancels, holds or alters a replica's job."""

    REPAIR = "repair"
    RESPECT = "respect"


class NodeSpread(enum.StrEnum):
    """How replicas lie on the nodes."""

    ANY = "any"
    SPREAD = "spread"
    PACK = "pack"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: to clients a model of its own."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """What an engine sets aside for adapters when it starts. None: as the adapters need it that there are then."""

    max_rank: int | None = None
    max_in_batch: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """Exactly one of `path` and `hub` is set."""

    path: str | None = None
    hub: str | None = None
    hub_revision: str = ""
    served_name: str = ""
    """Empty: the deployment's name."""
    adapters: tuple[Adapter, ...] = ()
    adapter_room: AdapterRoom | None = None
    """None: engines are started without any, and then there are no adapters."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The program that generates; `args` are handed to it as they are."""

    name: str = "vllm"
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    task: EngineTask = EngineTask.GENERATE


@dataclass(frozen=True, slots=True)
class Module:
    """Environment modules, and perhaps a virtual environment on top of them."""

    load: tuple[str, ...]
    use: tuple[str, ...] = ()
    """Folders of module files that are put before the site's own."""
    venv: str = ""


@dataclass(frozen=True, slots=True)
class Apptainer:
    """A container that the agent starts as a process of its own."""

    image: str
    binds: tuple[str, ...] = ()
    """`source[:target[:ro|rw]]`."""


@dataclass(frozen=True, slots=True)
class Pyxis:
    """A container that Slurm starts as a step of the job."""

    image: str
    mounts: tuple[str, ...] = ()
    """`source:target[:flags]`."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the engine's program comes from on the compute node. At most one is set; none: what the job's PATH has."""

    venv: str | None = None
    module: Module | None = None
    apptainer: Apptainer | None = None
    pyxis: Pyxis | None = None

    def __str__(self) -> str:
        if self.module is not None:
            venv = f" and the virtual environment {self.module.venv}" if self.module.venv else ""
            return f"with the modules {' '.join(self.module.load)}{venv}"
        if self.apptainer is not None:
            return f"in Apptainer, image {self.apptainer.image}"
        if self.pyxis is not None:
            return f"as a step in Pyxis, image {self.pyxis.image}"
        return f"from the virtual environment {self.venv}" if self.venv else "from the job's PATH"

    @property
    def image(self) -> str | None:
        """The container image's path; None without a container, and for an image of a registry."""
        container = self.apptainer or self.pyxis
        return container.image if container is not None and container.image.startswith("/") else None


@dataclass(frozen=True, slots=True)
class Resources:
    """Each a node."""

    gpus: int = 0
    gpu_type: str = ""
    cpus: int | None = None
    memory: str = ""
    """As it was written, such as `8GiB`; `memory_mib` is what counts."""
    memory_mib: int | None = None
    nodes: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Empty or None: the cluster's own default."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    time_limit: str = ""
    """As it was written, such as `4h`; `time_limit_s` is what counts."""
    time_limit_s: int | None = None
    exclusive: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    patience_s: int = 600
    """How long a job may wait in the queue before the next placement is tried; of no meaning for the last one."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Replicas beyond a guaranteed base, on resources that may be taken away."""

    base: int = 0
    placements: tuple[Placement, ...] = ()
    """At least one."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Replacing a replica before its job reaches its time limit."""

    enabled: bool = True
    margin_s: int = 120
    """On top of the estimated wait in the queue and the measured cold start."""
    stagger_percent: int = 10
    """By up to this share each job's time limit is shortened, a different one each."""


@dataclass(frozen=True, slots=True)
class Probes:
    """How long a replica may take to prove itself, and how long it may be silent."""

    startup_timeout_s: int = 1800
    """From the job's start (not its submission) to the first generated token."""
    report_timeout_s: int = 60
    """From the agent's last report, while somebody could have heard one."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A share of the replicas that runs a new revision before the others do."""

    percent: int
    """1 to 99; at least one replica."""
    bake_s: int | None = None
    """Promoted by itself once the canary has been ready for so long. None: by hand only."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a rollout may go above and below the wanted number of replicas."""

    strategy: RolloutStrategy = RolloutStrategy.ROLLING_UPDATE
    max_surge: str = "1"
    """Replicas above the wanted number: a number or a percentage, which `share` reads."""
    max_unavailable: str = "0"
    """Ready replicas below the wanted number, in the same form."""
    progress_deadline_s: int | None = None
    """From a job's start until its replica is ready; after that the rollout stops. None: `Probes.startup_timeout_s`."""
    rollback_on_failure: bool = False
    canary: Canary | None = None
    """Set with the strategy `CANARY`, and only then."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long a replica whose job ended unasked waits: doubled from the first wait with each failure in a row, less a
    share that is another one for each attempt."""

    backoff_initial_s: int = 10
    backoff_max_s: int = 300
    reset_after_s: int = 600
    """An attempt that was ready for this long and then ended counts as the first failure of a new row."""
    max_failures_per_hour: int | None = None
    """Of a revision's attempts, over all replicas: so many failures in an hour, and no more is tried until the oldest
    of them is an hour old. None: as `failures_allowed`."""

    def failures_allowed(self, replicas: int) -> int:
        """The budget of a deployment that wants so many replicas: by default 10, or 5 for each where that is more.

        By the default back-off the tenth failure of a single replica comes 1510 s after the first, less the jitter.
        """
        return self.max_failures_per_hour if self.max_failures_per_hour is not None else max(10, 5 * replicas)


@dataclass(frozen=True, slots=True)
class Admission:
    """How many requests are let in, and how many wait at each gateway while no replica can take them."""

    max_in_flight: int = 4096
    """Over all replicas, at each front door, gRPC and REST apart; those that wait count too."""
    max_held: int = 256
    """0: none waits; each is told at once why it cannot be served."""
    max_hold_s: int = 300
    """A client that set a shorter deadline waits no longer than that."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Which requests go to the same replica, as long as it is not overloaded. By default none."""

    session_header: str = ""
    """Those with the same value of this header; empty: none. It counts before `prefix_bytes`."""
    prefix_bytes: int = 0
    """Those whose prompts begin with the same so many bytes; 0: prompts are not looked at."""
    max_load_percent: int = 150
    """Of the mean number of requests in flight: above it a replica is passed over."""

    @property
    def has_affinity(self) -> bool:
        """Whether anything but load decides which replica gets a request."""
        return bool(self.session_header or self.prefix_bytes)


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything about a deployment that a person declares, but its name and labels."""

    model: Model
    engine: Engine = Engine()
    environment: Environment = Environment()
    replicas: int = 1
    resources: Resources = Resources()
    placement: Placement = Placement()
    probes: Probes = Probes()
    rollout: Rollout = Rollout()
    restart: RestartPolicy = RestartPolicy()
    drain_timeout_s: int = 60
    fallbacks: tuple[Placement, ...] = ()
    """Placements that are tried in order when patience with `placement` is at its end."""
    burst: Burst | None = None
    """None: every replica is a guaranteed one."""
    node_spread: NodeSpread = NodeSpread.ANY
    handover: Handover = Handover()
    outside_changes: OutsideChanges = OutsideChanges.REPAIR
    admission: Admission = Admission()
    routing: Routing = Routing()

    def placements_of(self, *, burst: bool) -> tuple[Placement, ...]:
        """Those of burst replicas or of guaranteed ones, in the order in which they are tried; at least one."""
        return self.burst.placements if burst and self.burst is not None else self.placements

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Those of guaranteed replicas, in the order in which they are tried; at least one."""
        return (self.placement, *self.fallbacks)


def share(text: str, of: int, *, up: bool) -> int:
    """A number or a percentage of `of` as whole replicas, percentages rounded up or down as Kubernetes does.

    >>> share("25%", 10, up=True), share("25%", 10, up=False), share("3", 10, up=True)
    (3, 2, 3)
    """
    if not text.endswith("%"):
        return int(text)
    hundredths = int(text[:-1]) * of
    return -(-hundredths // 100) if up else hundredths // 100
