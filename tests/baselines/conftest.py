"""A tiny Llama checkpoint on disk, made once, whose answers vary from token to token."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        eos_token_id=list(range(48)),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # The default initialisation gives hardly more than one distinct token.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    # Settings that a greedy request of fixed length must not take over.
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.eos_token_id = list(range(48))
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder
