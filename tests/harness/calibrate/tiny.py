"""Sizes of a calibration of a second."""

from harness.calibrate.sizes import MIB, Sizes

TINY = Sizes(
    rounds=1, rows=(1, 8), matrix=(128, 64), weight_bytes=1 * MIB, task_s=0.001,
    messages=(64, 65536), exchanges=5, file_bytes=4 * MIB, reads=(64 << 10, 1 * MIB),
    layers=(1, 3), new_tokens=3, program_rounds=1,
)  # fmt: skip
