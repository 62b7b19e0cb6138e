"""Plain Transformers on one device: `python -m baselines.transformers SPEC`.

`from_pretrained` in the dtype of the arithmetic, then `generate`, nothing tuned and nothing added:
what a person gets who follows its documentation. `load_s` covers importing and loading.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from baselines.program import main
from tpi.spec import Fields, NodeSpec


class TransformersModel:
    """A causal language model of the library, loaded whole."""

    def __init__(self, model: Any, version: str) -> None:
        self._model = model
        self.facts: Mapping[str, Any] = {
            "transformers": version,
            "parameter_bytes": model.get_memory_footprint(),
            "notes": [],
        }

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, on_token: Callable[[int], None]
    ) -> None:
        """Call `on_token` with each new id as soon as it is known."""
        from baselines.huggingface import greedy

        greedy(self._model, prompt_ids, new_tokens, on_token)


def load(spec: NodeSpec) -> TransformersModel:
    """Load the spec's folder; this system has no options."""
    Fields(spec.options, "spec options").finish()
    # Only here: a wrong spec is refused before the library's seconds of import.
    import transformers

    from baselines.huggingface import load_model

    model = load_model(spec.model_dir, spec.dtype, spec.threads)
    return TransformersModel(model, transformers.__version__)


if __name__ == "__main__":
    sys.exit(main(load))
