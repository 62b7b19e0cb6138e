"""Costs of computing, messages, disks and libraries on the calibrated host.

`make calibrate` measures a `Calibration` on this machine; without one, `reference.json` beside this
module is used. All rates and seconds are of one core with one thread: a device that is worth c
cores takes 1/c of every second and c times every rate, but for those of its disk.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from tpi.decode import Count, CountOrZero, NumBytes, convert
from tpi.errors import ConfigError
from tpi.files import parse_json, read_small_file, write_atomic

_REFERENCE = Path(__file__).with_name("reference.json")
_MAX_BYTES = 1 << 20
_BY_ROWS = ("products", "linear")
_ADVICE = "measure anew with `make calibrate`"

# Bytes, rates and seconds of any machine lie far below 1e18.
_Rate = Annotated[float, Meta(gt=0, le=1e18)]
_Seconds = Annotated[float, Meta(ge=0, le=1e18)]
# What a table of rates by rows is: ((rows, rate), ...), rows ascending from 1.
Rates = tuple[tuple[Count, _Rate], ...]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Costs on one core of the calibrated host.

    Attributes:
        host: Processor and how it was measured, for people.
        core_read_bps: What a core reads of memory while all do (`testbed/host/rates.py`): a
            device with so much memory rate is worth one core, here as where it is emulated.
        products: "STORED->COMPUTED" (`bfloat16->float32`) to a table of (rows, bytes/s): bytes of
            stored weights that our kernels (`tpi.kernels`) multiply with a step of so many rows.
            Rows 1, 8, 32, 128 and 512 are a good choice; 1 must be there.
        linear: The same for `torch.nn.functional.linear` by dtype (`float32`): the libraries.
        attend: By dtype, (queries, FLOP/s) of attention, 4 S T h E of them a layer; queries 1 must
            be there, 8, 32, 128 and 256 are a good choice.
        block_s: One attn or ffn block beside its products, a step of one row: taking it from the
            window, norm, rotation, cache.
        element_s: Added to that by every element more (rows beyond the first times hidden size).
        step_s: A step beside its blocks and sums: embedding, sampling, bookkeeping.
        sum_call_s: One allreduce of two ranks or more beside its messages: checks, copies, calls.
        send_s: Handing one message to the kernel; `recv_s` is waking up and reading one.
        packet_s: Each IP packet of a message, to sender and receiver.
        sum_bps: Bytes/s of float32 that are added to a sum as they arrive.
        disk_read_bps: Bytes/s of the host's disk, past the page cache.
        disk_request_s: One block's read beside its bytes.
        read_cpu_bps: Bytes per second of processor time that the loader reads.
        page_in_bps: Bytes/s of mapped files that come in from the page cache, page by page.
        cast_bps: "STORED->COMPUTED" to stored bytes/s of mapped, cached weights that become new
            tensors (Accelerate's hooks); of one dtype it is a copy.
        hook_s: Accelerate's hooks, a tensor, beside its bytes.
        library_layer_s: A layer of Transformers beside its products, one row.
        library_step_s: A pass of Transformers' `generate` beside its layers.
        swap_bps: Bytes/s that are paged in under swap; the disk's rate bounds it.
        start_s: From start to `ready` of `tpi node`, without weights.
        library_start_s: The same of Transformers, with imports.
        library_bytes: Peak memory of Transformers before any weight.
        library_anon_bytes: Of it, anonymous.
        cpu_model: The host's processor, and `cores` of it; a file that does not say has neither.
    """

    host: str
    core_read_bps: _Rate
    products: Mapping[str, Rates]
    linear: Mapping[str, Rates]
    attend: Mapping[str, Rates]
    cast_bps: Mapping[str, _Rate]
    block_s: _Seconds
    element_s: _Seconds
    step_s: _Seconds
    sum_call_s: _Seconds
    send_s: _Seconds
    recv_s: _Seconds
    packet_s: _Seconds
    sum_bps: _Rate
    disk_read_bps: _Rate
    disk_request_s: _Seconds
    read_cpu_bps: _Rate
    page_in_bps: _Rate
    hook_s: _Seconds
    library_layer_s: _Seconds
    library_step_s: _Seconds
    swap_bps: _Rate
    start_s: _Seconds
    library_start_s: _Seconds
    library_bytes: NumBytes
    library_anon_bytes: NumBytes
    cpu_model: str = ""
    cores: CountOrZero = 0
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        for name in (*_BY_ROWS, "attend"):
            for key, table in getattr(self, name).items():
                rows = [at for at, _ in table]
                if not rows or rows != sorted(set(rows)) or rows[0] != 1:
                    raise ConfigError(
                        f"calibration: {name}[{key}] must have rows that ascend from 1, got {rows};"
                        f" {_ADVICE}"
                    )

    def product_s(self, num_bytes: float, rows: int, stored: str, computed: str) -> float:
        """Seconds that one core multiplies stored weights with a step of so many rows."""
        key = f"{stored}->{computed}"
        return num_bytes * _second_per_unit(_named(self.products, key, "products"), rows)

    def linear_s(self, num_bytes: float, rows: int, dtype: str) -> float:
        """The same for weights that a library holds in the dtype that it computes in."""
        return num_bytes * _second_per_unit(_named(self.linear, dtype, "linear"), rows)

    def cast_s(self, num_bytes: float, stored: str, computed: str) -> float:
        """Seconds that one core makes tensors of mapped, cached weights of so many stored bytes."""
        return num_bytes / _named(self.cast_bps, f"{stored}->{computed}", "cast_bps")

    def attend_s(self, queries: int, keys: float, width: int, dtype: str) -> float:
        """Seconds of one layer's attention on one core; `width` is heads times head size."""
        flops = 4.0 * queries * keys * width
        return flops / _rising_rate(_named(self.attend, dtype, "attend"), queries)


def _named(table: Mapping[str, _Value], key: str, name: str) -> _Value:
    if key not in table:
        known = ", ".join(sorted(table)) or "nothing"
        raise ConfigError(
            f"calibration: {name} has no {key}, it has {known}; measure it with `make calibrate`"
        )
    return table[key]


def _second_per_unit(table: Rates, rows: int) -> float:
    """Time per byte or operation: it grows linearly with the rows between those measured."""
    if len(table) == 1:
        return 1.0 / table[0][1]
    upper = next((i for i, (at, _) in enumerate(table) if at >= rows), len(table) - 1)
    (a, rate_a), (b, rate_b) = table[max(upper - 1, 0)], table[max(upper, 1)]
    part = (rows - a) / (b - a)
    # A table whose last rates rise would reach 0 somewhere beyond it.
    return max((1 - part) / rate_a + part / rate_b, min(1 / rate_a, 1 / rate_b))


def _rising_rate(table: Rates, rows: int) -> float:
    """Rate of what gets faster with the rows: a straight line of logarithms between those measured.

    Time per operation is not linear there: interpolated, it would hardly fall before the last rows
    measured, and half of them would take several times as long as all.
    """
    above = next((i for i, (at, _) in enumerate(table) if at >= rows), None)
    if above is None:
        return table[-1][1]
    if above == 0:
        return table[0][1]
    (a, rate_a), (b, rate_b) = table[above - 1], table[above]
    part = math.log(rows / a) / math.log(b / a)
    return rate_a * math.pow(rate_b / rate_a, part)


def load_calibration(path: Path | None = None) -> Calibration:
    """Read a calibration; the reference that comes with the project if none is named."""
    where = "testbed/sim/reference.json" if path is None else str(path)
    data = read_small_file(path or _REFERENCE, _MAX_BYTES, ConfigError)
    return decode(parse_json(data, where, ConfigError), where)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration, whole or not at all."""
    text = json.dumps(asdict(calibration), indent=1, sort_keys=True)
    write_atomic(path, f"{text}\n".encode())


def decode(raw: object, where: str) -> Calibration:
    """Check what a JSON file holds; a ConfigError as for `load_calibration`."""
    where = f"calibration {where}"
    known = {entry.name for entry in fields(Calibration)}
    for name in sorted(convert(raw, dict[str, object], where, ConfigError).keys() - known):
        raise ConfigError(f"{where}: unknown key {name!r}; {_ADVICE}")
    found = convert(raw, Calibration, where, ConfigError, _ADVICE)
    for name in _BY_ROWS:
        for key, table in getattr(found, name).items():
            if len(table) < 2:  # a prefill would take as long as a token
                raise ConfigError(
                    f"{where}: {name}[{key}] must have two numbers of rows or more, got"
                    f" {len(table)}; {_ADVICE}"
                )
    return found
