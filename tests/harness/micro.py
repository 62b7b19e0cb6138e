"""A model so small that its weights are made in milliseconds, without torch."""

from pathlib import Path

import tokenizers

from harness.config.compose import config_from
from harness.config.config import Config
from testbed.host.rates import Host
from tpi.model_config import ModelConfig, RopeScaling
from tpi.weights.hf_folder import write_hf_folder
from tpi.weights.synthetic import SyntheticSource

MODEL = ModelConfig(
    architecture="llama",
    num_layers=3,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    ffn_size=96,
    vocab_size=256,
    max_positions=128,
    rms_eps=1e-5,
    rope_theta=10000.0,
    rope=RopeScaling(),
    dtype="bfloat16",
)
GIB = 1 << 30
PROMPT = (5, 6, 7, 8)
HOST = Host(available_memory=24 * GIB, free_disk=40 * GIB, read_bps=1e9, write_bps=1e9, cores=2)


def write_model(folder: Path, *, tokenizer: bool = False) -> Path:
    """Write the model in Hugging Face form."""
    write_hf_folder(SyntheticSource(MODEL), folder)
    if tokenizer:
        vocab = {"<unk>": 0, "hello": 1, "world": 2}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "<unk>"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        backend.save(str(folder / "tokenizer.json"))
    return folder


def make_config(tmp_path: Path, **changes: object) -> Config:
    """A configuration that reads and writes below `tmp_path` only."""
    raw: dict[str, object] = {
        "weights": {"dir": str(tmp_path / "weights")},
        "results_dir": str(tmp_path / "runs"),
        "systems": {"tpi": {}, "transformers": {}},
        "devices": 2,
        "repeats": 2,
        "workload": {"prompt_tokens": 4, "new_tokens": 5},
    }
    return config_from({**raw, **changes})
