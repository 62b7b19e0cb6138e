"""The inputs of a prediction (`CostInputs`) and its result (`Prediction`). Pure.

Rates are the lowest that were seen on two-core virtual machines (2023 EPYC and Xeon), per thread.
"""

import math
from dataclasses import dataclass

from testbed.host.rates import Host
from testbed.limits.limits import DevicePlan
from tpi.comm.allreduces.star import Star
from tpi.model_config import DTYPE_BYTES, ModelConfig

MATVEC_BPS = 3e9  # stored weights through a matrix-vector product
_NOT_OVERLAPPED = 0.25  # of the shorter of reading and computing
_START_CPU_S = 3.0  # importing torch, per process
_PREFILL_FLOPS = 15e9  # floating-point operations of a prefill
_DISK_SHARE = 0.9  # of the probed rate: others use the disk too
_MESSAGE_S = 0.5e-3  # one message of an allreduce, as it costs both ends


@dataclass(frozen=True, slots=True)
class Prediction:
    """One start of a system, one request in it.

    Attributes:
        peak_bytes: Predicted peak memory of each device.
        read_bytes_per_step: What all devices together read from disk in one forward pass.
        start_s: From start until requests can come.
        prefill_s: From `go` to the first token.
        step_s: Each further token.
        scratch_bytes: Disk that it fills with files of its own while it runs.
    """

    peak_bytes: tuple[int, ...]
    read_bytes_per_step: int
    start_s: float
    prefill_s: float
    step_s: float
    scratch_bytes: int = 0

    @property
    def need_bytes(self) -> int:
        """Memory of all devices together: they share one machine."""
        return sum(self.peak_bytes)

    def request_s(self, new_tokens: int) -> float:
        """Seconds that one request takes."""
        return self.prefill_s + (new_tokens - 1) * self.step_s


@dataclass(frozen=True, slots=True)
class CostInputs:
    """The inputs that all systems of a plan share; `devices` are all devices of the testbed."""

    model: ModelConfig
    storage: str
    dtype: str
    threads: int
    devices: tuple[DevicePlan, ...]
    prompt_tokens: int
    new_tokens: int
    host: Host

    @property
    def max_tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.new_tokens

    def read_bps(self, devices: int = 1) -> float:
        """The disk rate that so many devices together can count on."""
        caps = [d.limits.read_bps for d in self.devices[:devices] if d.limits.read_bps]
        capped = devices * min(caps) if len(caps) == devices else self.host.read_bps
        return _DISK_SHARE * min(self.host.read_bps, capped)

    def cores(self, processes: int = 1) -> float:
        """Cores of this host that so many devices keep busy; the slowest sets the pace."""
        return min(self.host.cores, processes * self._cpus(processes, self.threads))

    def start_s(self, processes: int = 1) -> float:
        """Seconds until so many programs have imported what they need, one thread each."""
        cores = min(self.host.cores, processes * self._cpus(processes, 1))
        return _START_CPU_S * processes / cores

    def exchange_s(self, devices: int, num_bytes: int) -> float:
        """Seconds of one allreduce of so many bytes over a star, or of passing them on."""
        if devices < 2:
            return 0.0
        links = [device.link for device in self.devices[:devices]]
        return devices * _MESSAGE_S + Star().cost_s(
            world_size=devices,
            num_bytes=num_bytes,
            delay_s=2 * max((link.delay_s for link in links), default=0.0),
            rate_bps=min((link.rate_bps for link in links if link.rate_bps), default=math.inf),
        )

    @property
    def hidden_bytes(self) -> int:
        """The hidden state of one position on the wire."""
        return 4 * self.model.hidden_size

    def _cpus(self, devices: int, most: int) -> float:
        quotas = (device.limits.cpus for device in self.devices[:devices])
        return min([most, *(cpus for cpus in quotas if cpus is not None)])

    @property
    def weight_bytes(self) -> int:
        """All weights in the compute dtype."""
        return num_parameters(self.model) * DTYPE_BYTES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """All weights as they are stored."""
        return _hf_bytes(self.model, self.storage)

    def prefill_s(self, cores: float) -> float:
        """Seconds of computing with the whole prompt."""
        operations = 2 * num_parameters(self.model)
        return operations * self.prompt_tokens / (_PREFILL_FLOPS * cores) + operations / (
            MATVEC_BPS * cores
        )


def overlapped_s(one_s: float, other_s: float) -> float:
    """Seconds of reading and computing at the same time."""
    return max(one_s, other_s) + _NOT_OVERLAPPED * min(one_s, other_s)


def num_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model, a tied head counted once."""
    return _hf_bytes(model, "float32") // 4


def _hf_bytes(model: ModelConfig, dtype: str) -> int:
    from tpi.weights.hf_folder import required_hf_bytes  # loads NumPy

    return required_hf_bytes(model, dtype)


def parameters_text(model: ModelConfig) -> str:
    """`69 B parameters`."""
    count = num_parameters(model)
    return f"{count / 1e6:.3g} M parameters" if count < 1e9 else f"{count / 1e9:.3g} B parameters"
