"""Cut a checkpoint into the folders `rank-0` ... `rank-N-1`, in one pass and little memory.

Each chunk of rows is read once and its pieces go to the files of all ranks, which are hashed
while written. The journal says which blocks are complete and durable; manifests come last, so a
folder that looks finished is finished, and running an interrupted split again does the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpi.errors import ConfigError
from tpi.files import sync_folder
from tpi.model_config import DTYPES, ModelConfig
from tpi.weights.blockfile import (
    MANIFEST_FILE,
    BlockEntry,
    Manifest,
    make_plan_digest,
    write_manifest,
)
from tpi.weights.checkpoint import TensorSource, copy_tokenizer, row_chunks
from tpi.weights.dtypes import RawArray, convert
from tpi.weights.journal import Journal
from tpi.weights.layout import BlockLayout
from tpi.weights.newfile import (
    NewFile,
    Progress,
    WriteQueue,
    lock_folder,
    require_free_bytes,
    write_error,
)
from tpi.weights.shard import BlockId, BlockSpec, ShardPlan, SourceSlice, rank_blocks

# For manifests, journal, tokenizer, folders.
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Part:
    """One block of one rank: where it goes and how it is laid out."""

    rank: int
    spec: BlockSpec
    layout: BlockLayout

    @property
    def name(self) -> str:
        return f"rank-{self.rank}/{self.spec.id.file_name}"


@dataclass(frozen=True, slots=True)
class _Job:
    source: TensorSource
    plan: ShardPlan
    out: Path
    dtype: str
    parts: Mapping[BlockId, Sequence[_Part]]
    digest: str  # of all that decides the bytes of the shards; every rank's manifest has it
    journal: Journal

    def stored_id(self, block: BlockId) -> BlockId:
        """The block whose file holds this block's numbers: itself, or an equal layer's."""
        return _stored_id(block, self.source.distinct_layers)

    def holds(self, part: _Part) -> bool:
        return self.journal.holds(part.name, part.layout.num_bytes)


def split(
    source: TensorSource,
    plan: ShardPlan,
    out: Path,
    *,
    dtype: str | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> int:
    """Write one shard folder per rank; gives the bytes written, 0 if all was complete.

    Args:
        source: The checkpoint; read once, in chunks of rows.
        plan: Who gets what.
        out: Folder for `rank-0` ...; made if missing. What is complete there is not redone.
        dtype: Storage dtype; the source's by default.
        progress: Called with (bytes done, bytes in all) after every chunk.
        force: Replace shards of another source or plan.

    Raises:
        ConfigError: `out` holds shards of another source, plan or dtype, or another split is
            writing to it, or it cannot be made.
        ResourceError: The disk has too little space, before anything is written, or ran full.
        WeightsError: The source cannot be read or the output not be written.
    """
    dtype = dtype or source.dtype
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    parts = _parts(source.config, plan, dtype)
    digest = make_plan_digest(
        source.config, plan, dtype, source.distinct_layers, source.fingerprint
    )
    with lock_folder(out):
        try:
            journal = Journal(out, digest, force=force)
            return _split_locked(_Job(source, plan, out, dtype, parts, digest, journal), progress)
        except OSError as exc:
            raise write_error(out, exc) from exc


def required_bytes(
    config: ModelConfig, plan: ShardPlan, dtype: str, distinct_layers: int | None = None
) -> int:
    """Bytes of disk that the shards of all ranks take; repeated layers are links and take none."""
    distinct = distinct_layers or config.num_layers
    return sum(
        part.layout.num_bytes
        for block, parts in _parts(config, plan, dtype).items()
        if _stored_id(block, distinct) == block
        for part in parts
    )


def _split_locked(job: _Job, progress: Progress | None) -> int:
    stored = {block: parts for block, parts in job.parts.items() if job.stored_id(block) == block}
    missing = {block: p for block, p in stored.items() if not all(map(job.holds, p))}
    total = sum(part.layout.num_bytes for parts in stored.values() for part in parts)
    todo = sum(part.layout.num_bytes for parts in missing.values() for part in parts)
    ranks = [job.out / f"rank-{rank}" for rank in range(job.plan.world_size)]
    if _looks_complete(job, ranks):
        return 0
    require_free_bytes(job.out, todo + _SPARE_BYTES)
    job.journal.remove_manifests()
    for folder in ranks:
        folder.mkdir(exist_ok=True)
    with WriteQueue(progress, total - todo, total) as queue:
        _write_blocks(job, missing, queue)
    _link_repeated(job)
    copy_tokenizer(job.source, ranks[0])
    for rank, folder in enumerate(ranks):
        _write_manifest(job, rank, folder)
    job.journal.finish()
    return todo


def _looks_complete(job: _Job, ranks: Sequence[Path]) -> bool:
    if not job.journal.complete or not all((r / MANIFEST_FILE).exists() for r in ranks):
        return False
    files = ((job.out / p.name, p.layout.num_bytes) for ps in job.parts.values() for p in ps)
    return all(path.exists() and path.stat().st_size == size for path, size in files)


def _stored_id(block: BlockId, distinct_layers: int) -> BlockId:
    """The block whose file holds this block's numbers."""
    if block.kind in ("attn", "ffn"):
        return BlockId(block.kind, block.index % distinct_layers)
    return block


def _parts(config: ModelConfig, plan: ShardPlan, dtype: str) -> dict[BlockId, list[_Part]]:
    """All blocks of all ranks, in the order in which the source is read."""
    parts: dict[BlockId, list[_Part]] = {}
    for rank in range(plan.world_size):
        for spec in rank_blocks(config, plan, rank, dtype):
            part = _Part(rank, spec, spec.layout())
            parts.setdefault(spec.id, []).append(part)
    return parts


def _write_blocks(job: _Job, blocks: Mapping[BlockId, Sequence[_Part]], queue: WriteQueue) -> None:
    finishing: list[tuple[_Part, Future[str]]] = []
    for parts in blocks.values():
        files = [queue.create(job.out / part.name) for part in parts]
        _write_block(job, list(zip(parts, files, strict=True)), queue)
        # One block late: its last bytes reach the disk while this one's first are made.
        _enter(job, finishing)
        finishing = [(part, queue.finish(file)) for part, file in zip(parts, files, strict=True)]
    _enter(job, finishing)


def _enter(job: _Job, finishing: Sequence[tuple[_Part, Future[str]]]) -> None:
    """Wait until the bytes of files are durable, then note them in the journal."""
    job.journal.enter({part.name: future.result() for part, future in finishing})


def _write_block(job: _Job, targets: Sequence[tuple[_Part, NewFile]], queue: WriteQueue) -> None:
    """Write one block of all ranks, every chunk of the source read once."""
    for part, file in targets:
        queue.append(file, memoryview(part.layout.header))
    # Ranks differ in that some lack a bias, never in the order.
    for name in max(([t.name for t in part.spec.tensors] for part, _ in targets), key=len):
        cuts = list(_cuts(targets, name))
        for file, offset, _ in cuts:
            queue.pad(file, offset)
        for file, piece in _pieces(job.source, [(f, cut) for f, _, cut in cuts], job.dtype):
            queue.append(file, piece.data.cast("B"))
    for part, file in targets:
        queue.pad(file, part.layout.num_bytes)


def _cuts(
    targets: Sequence[tuple[_Part, NewFile]], name: str
) -> Iterator[tuple[NewFile, int, SourceSlice]]:
    """For each rank that holds a tensor: its file, where it begins there, and how it is cut."""
    for part, file in targets:
        for spec, place in zip(part.spec.tensors, part.layout.places, strict=True):
            if spec.name == name:
                yield file, place.offset, spec.source


def _pieces(
    source: TensorSource, cuts: Sequence[tuple[NewFile, SourceSlice]], dtype: str
) -> Iterator[tuple[NewFile, RawArray]]:
    """Cut one tensor of the source, chunk by chunk, into what goes to each file next."""
    name = cuts[0][1].name
    where = f"{source.description}: tensor {name}"
    first = min(cut.rows[0] for _, cut in cuts)
    last = max(cut.rows[1] for _, cut in cuts)
    for start, stop in row_chunks(source, name, first, last):
        chunk = source.read_rows(name, start, stop)
        chunk = convert(chunk, source.tensor_dtype(name), dtype, where)
        for file, cut in cuts:
            rows = chunk[max(cut.rows[0] - start, 0) : max(cut.rows[1] - start, 0)]
            piece = rows if cut.cols is None else rows[:, cut.cols[0] : cut.cols[1]]
            if piece.size:
                yield file, np.ascontiguousarray(piece)


def _link_repeated(job: _Job) -> None:
    """Give the layers that repeat another's numbers the other's file as a hard link."""
    for block, parts in job.parts.items():
        stored = job.stored_id(block)
        if stored == block:
            continue
        for part in parts:
            path = job.out / part.name
            path.unlink(missing_ok=True)
            path.hardlink_to(path.with_name(stored.file_name))


def _write_manifest(job: _Job, rank: int, folder: Path) -> None:
    sync_folder(folder)  # a manifest that outlives a crash must not outlive its files' names
    entries = []
    for spec in rank_blocks(job.source.config, job.plan, rank, job.dtype):
        part = next(part for part in job.parts[spec.id] if part.rank == rank)
        stored = job.stored_id(spec.id)
        entries.append(
            BlockEntry(
                id=spec.id,
                path=job.out / part.name,
                num_bytes=part.layout.num_bytes,
                sha256=job.journal.sha256[f"{folder.name}/{stored.file_name}"],
                places=part.layout.places,
            )
        )
    manifest = Manifest(
        config=job.source.config,
        plan=job.plan,
        rank=rank,
        dtype=job.dtype,
        blocks=tuple(entries),
        plan_digest=job.digest,
        distinct_layers=job.source.distinct_layers,
        source=job.source.fingerprint,
    )
    write_manifest(folder, manifest)
