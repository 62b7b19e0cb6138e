"""What a reader must know of a run beside its numbers: facts, and the only words for them.

A `Note` is one fact; `str(note)` is what stands below a table.
"""

from msgspec import Struct


def plain(text: str) -> str:
    """One line without control characters: a log's words must not move the cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


class Cut(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Something was cut so that the plan fits the time."""

    what: str
    asked: int
    ran: int
    max_minutes: float

    def __str__(self) -> str:
        limit = f"max_minutes={self.max_minutes:g}"
        return f"{self.what} {self.asked} -> {self.ran}, to fit {limit}"


class DistinctLayers(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Only so many layers are stored; the others are links to them."""

    stored: int
    total: int

    def __str__(self) -> str:
        return f"distinct_layers: {self.stored} of {self.total}"


class OwnSetting(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A system was asked to compute in another way than the others of its run."""

    name: str
    own: int | str
    of_run: int | str

    def __str__(self) -> str:
        return f"{self.name}: {self.own}, of the run: {self.of_run}"


class OwnForm(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A system read weights in a form of its own, and its tokens were checked against that."""

    form: str

    def __str__(self) -> str:
        return f"{self.form}; its tokens are checked against the file's own numbers"


class Said(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """What a program or the simulator said."""

    text: str

    def __str__(self) -> str:
        return self.text


class Contended(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Another harness was busy on this host."""

    def __str__(self) -> str:
        return "contended: another harness ran on this host at the same time"


class LinkFaults(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Links were changed during the measured request."""

    changes: int

    def __str__(self) -> str:
        return f"link faults were made during the measured request: {self.changes} changes"


class LinkFaultsFailed(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Changes of links that were asked for and could not be made."""

    count: int
    first_error: str

    def __str__(self) -> str:
        return f"link faults that could not be made: {self.count}, {self.first_error}"


class DiskShare(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """At which rate a run streamed, and what its disks could have given."""

    rate_bps: float
    most_bps: float
    devices: int = 0  # those whose disks are held to a rate; 0 where all share this host's disk

    def __str__(self) -> str:
        what = "what the disk gives one reader of the same files"
        if self.devices:
            what = f"what the disks of {self.devices} device{'s' * (self.devices > 1)} may give"
        share = f"{self.rate_bps / self.most_bps:.0%} of {what} ({self.most_bps / 1e9:.2f} GB/s)"
        return f"streamed {self.rate_bps / 1e9:.2f} GB/s, {share}"


Note = (
    Cut
    | DistinctLayers
    | OwnSetting
    | OwnForm
    | Said
    | Contended
    | LinkFaults
    | LinkFaultsFailed
    | DiskShare
)
