"""What the store says no to: one class a cause, each with its sentence.

A statement refused here has changed nothing once its transaction is rolled back, which leaving
`Database.transaction` by an exception does. That the database does not answer is no class of ours:
`penstock.store.database.is_outage` tells.
"""

from __future__ import annotations


class StoreError(Exception):
    """The request cannot be carried out on what is stored. The message is one sentence for people."""


class NotFound(StoreError):
    """`kind` is the noun: deployment, replica, revision."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name!r}")
        self.kind = kind
        self.name = name


class NameTaken(StoreError):
    """A deployment has this name, or serves its model under it (`holder` is that deployment)."""

    def __init__(self, name: str, holder: str) -> None:
        how = (
            "there is one already"
            if name == holder
            else f"deployment {holder!r} serves its model, or an adapter, under that name"
        )
        super().__init__(f"a deployment cannot be named {name!r}: {how}")
        self.name = name
        self.holder = holder


class ServedNameTaken(StoreError):
    """Clients already reach another deployment, `holder`, under this model name. `field`: where the spec has it."""

    def __init__(self, name: str, holder: str, field: str = "spec.model.served_name") -> None:
        super().__init__(f"the model name {name!r} is taken by deployment {holder!r}; choose another {field}")
        self.field = field
        self.name = name
        self.holder = holder


class VersionConflict(StoreError):
    """Somebody else wrote in between; `current` is the version that the object has now."""

    def __init__(self, name: str, expected: int, current: int) -> None:
        super().__init__(
            f"deployment {name!r} has resource version {current}, not {expected}: read it again and repeat the change"
        )
        self.name = name
        self.expected = expected
        self.current = current


class BeingDeleted(StoreError):
    """The deployment is marked for deletion and takes no more changes."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"deployment {name!r} is being deleted and cannot be changed; apply it again once it is gone"
        )
        self.name = name


class AttemptEnded(StoreError):
    """An agent speaks for an attempt that is over: it is to stop."""

    def __init__(self, token: str) -> None:
        super().__init__(f"attempt {token} has ended")
        self.token = token


class AttemptSuperseded(StoreError):
    """An agent speaks for a run of the attempt that another one has taken the place of: it is to stop."""

    def __init__(self, token: str, why: str) -> None:
        super().__init__(f"attempt {token} is carried on elsewhere: {why}")
        self.token = token


class JobTaken(StoreError):
    """An agent's job is still recorded as another live attempt's: Slurm lost its state and gave the id again. The
    controller ends that attempt soon; until then the agent is to try again."""

    def __init__(self, token: str, job_id: int) -> None:
        super().__init__(
            f"job {job_id} is still recorded as another live attempt's; attempt {token} is to register again in a while"
        )
        self.token = token
        self.job_id = job_id


class LeaseLost(StoreError):
    """The term is not the current one, or has run out: its holder may touch Slurm no more."""

    def __init__(self, name: str, term: int) -> None:
        super().__init__(f"term {term} of lease {name!r} is over")
        self.name = name
        self.term = term


class SchemaMismatch(StoreError):
    """The database's schema is not the one that this release was written for. `later`: a later release has made it."""

    def __init__(self, found: str | None, wanted: str, *, later: bool = False) -> None:
        what_to_do = "install the release that made it" if later else "run: penstock db upgrade"
        super().__init__(
            f"the database has schema {found or 'none'}, and this release needs {wanted}; {what_to_do}"
        )
        self.found = found
        self.wanted = wanted


class DocumentError(StoreError):
    """A stored JSON document does not have the shape that this release reads; `path` says where."""

    def __init__(self, problem: str, *path: str) -> None:
        super().__init__(f"stored document: {'.'.join(path)}: {problem}")
        self.problem = problem
        self.path = path

    def below(self, place: str) -> DocumentError:
        """The same, seen from one step further out."""
        return DocumentError(self.problem, place, *self.path)


class FilterError(StoreError, ValueError):
    """A label filter that cannot be read."""

    def __init__(self, term: str, problem: str) -> None:
        super().__init__(
            f"filter term {term!r} {problem}; accepted: terms joined by commas, each label=value, label!=value or label"
        )
        self.term = term
