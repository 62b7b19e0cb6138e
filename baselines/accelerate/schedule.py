"""Accelerate's schedules: what it keeps in memory, and what every pass reads again.

Both bring a module's weights in through the page cache when its forward pass begins. The version
of 2024 reads them from files of its own, in the dtype of the arithmetic.
"""

from baselines.transformers.schedule import LibraryPlan, fitting_bytes, num_elements, serve
from testbed.sim.base import SimOutcome, SimRun
from testbed.sim.calibration import Calibration
from tpi.errors import ConfigError
from tpi.model_config import DTYPE_BYTES, ModelConfig

_LAYER_TENSORS = 9  # seven matrices and two norms


def accelerate(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Accelerate's disk offload as of today: weights come from the checkpoint's own files."""
    model, dtype = run.model, run.compute.dtype
    layer, head, total = num_elements(model)
    stored, weights = total * DTYPE_BYTES[run.storage], total * DTYPE_BYTES[dtype]
    kept = _kept(run, weights, max(layer, head) * DTYPE_BYTES[dtype])
    offloaded = round(stored * (1 - kept / weights))
    casts = run.storage != dtype
    largest = head * DTYPE_BYTES[dtype]
    anon = calibration.library_anon_bytes + kept + (2 * largest if casts else 0)
    moving_s = (
        calibration.cast_s(offloaded, run.storage, dtype)
        if casts
        else offloaded / calibration.page_in_bps
    )
    # Weights that are cast leave their file mapped, page by page.
    mapped = fitting_bytes(run.devices[0], anon, offloaded) if casts else largest // 2
    plan = LibraryPlan(
        anon=anon, steady=anon,
        rss=anon + calibration.library_bytes - calibration.library_anon_bytes + mapped,
        cached=offloaded, mapped=mapped,
        hooks_s=moving_s + _tensors(model) * calibration.hook_s * offloaded / stored,
        load_bytes=round(stored * kept / weights), load_s=kept / 1e9,
    )  # fmt: skip
    return serve(run, calibration, plan)


def _kept(run: SimRun, weights: int, largest: int) -> int:
    """Bytes of weights that stay in memory: as many as leave room for the largest module."""
    limit = run.options.get("max_memory")
    if limit is None:
        return 0
    if not isinstance(limit, int):
        raise ConfigError(f"accelerate: max_memory: expected bytes or null, got {limit!r}")
    return weights if limit >= weights + largest else max(0, limit - largest)


def accelerate_2024(run: SimRun, calibration: Calibration) -> SimOutcome:
    """Accelerate as the paper met it: everything is loaded, then written out, then read."""
    total, dtype = num_elements(run.model)[2], run.compute.dtype
    stored, weights = total * DTYPE_BYTES[run.storage], total * DTYPE_BYTES[dtype]
    # Its files are memory maps in the dtype of the arithmetic: pages come in, nothing is converted.
    moving_s = weights / calibration.page_in_bps
    anon = calibration.library_anon_bytes
    largest = num_elements(run.model)[1] * DTYPE_BYTES[dtype]
    plan = LibraryPlan(
        anon=anon + weights, steady=anon + largest,
        rss=calibration.library_bytes + weights + stored, cached=weights,
        hooks_s=moving_s + _tensors(run.model) * calibration.hook_s,
        load_bytes=stored, load_s=calibration.cast_s(stored, run.storage, dtype),
        written=weights,
    )  # fmt: skip
    return serve(run, calibration, plan)


def _tensors(model: ModelConfig) -> int:
    return _LAYER_TENSORS * model.num_layers + 3
