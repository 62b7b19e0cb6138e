"""The check `bounded` of the harness, for tests that have no harness."""

from baselines.transformers.reference import ReferenceJob, compute
from harness.run.judge import check_bounded as check
from tests.checkpoints import NEW_TOKENS, PROMPT_IDS


def check_bounded(tokens, folder) -> None:
    """No token strays further from the float32 reference than bfloat16 explains."""
    moved = (*tokens[1:], tokens[0])
    reference = compute(
        ReferenceJob(
            str(folder),
            PROMPT_IDS,
            NEW_TOKENS,
            error_of="bfloat16",
            answers={"ours": tuple(tokens), "moved": moved},
        )
    )
    assert reference.logit_error is not None

    def passed(name, answer):
        return check(
            answer, reference.tokens, reference.shortfalls[name], reference.logit_error or 0.0
        ).passed

    assert passed("ours", tokens)
    assert not passed("moved", moved)  # the bound means something
