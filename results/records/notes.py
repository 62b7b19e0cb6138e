"""What a reader must know of a run beside its numbers: facts, and the only words for them.

A `Note` is one fact; `str(note)` is what stands below a table.
"""

from typing import ClassVar

from msgspec import Struct, structs


def plain(text: str) -> str:
    """One line without control characters: a log's words must not move the cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


class _Fact(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """One fact; `words` is its text, with its fields in braces."""

    words: ClassVar[str]

    def __str__(self) -> str:
        return self.words.format(**structs.asdict(self))


class Cut(_Fact, frozen=True):
    """Something was cut so that the plan fits the time."""

    words = "{what} {asked} -> {ran}, to fit max_minutes={max_minutes:g}"
    what: str
    asked: int
    ran: int
    max_minutes: float


class DistinctLayers(_Fact, frozen=True):
    """Only so many layers are stored; the others are links to them."""

    words = "distinct_layers: {stored} of {total}"
    stored: int
    total: int


class OwnSetting(_Fact, frozen=True):
    """A system was asked to compute in another way than the others of its run."""

    words = "{name}: {own}, of the run: {of_run}"
    name: str
    own: int | str
    of_run: int | str


class OwnForm(_Fact, frozen=True):
    """A system read weights in a form of its own, and its tokens were checked against that."""

    words = "{form}; its tokens are checked against the file's own numbers"
    form: str


class Said(_Fact, frozen=True):
    """What a program or the simulator said."""

    words = "{text}"
    text: str


class Contended(_Fact, frozen=True):
    """Another harness was busy on this host."""

    words = "contended: another harness ran on this host at the same time"


class LinkFaults(_Fact, frozen=True):
    """Links were changed during the measured request."""

    words = "link faults were made during the measured request: {changes} changes"
    changes: int


class LinkFaultsFailed(_Fact, frozen=True):
    """Changes of links that were asked for and could not be made."""

    words = "link faults that could not be made: {count}, {first_error}"
    count: int
    first_error: str


class DiskShare(_Fact, frozen=True):
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
