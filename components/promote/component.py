"""KFP doorways of the two ways a run can end: promoted, or recorded."""

from kfp import dsl

from components.core.component import component


@component
def promote(
    config: str, run_id: str, window: str, challenger: str, rung: int, verdict: str, outcome: dsl.Output[dsl.Markdown]
) -> str:
    """Make the challenger the champion, atomically: one record in the model's ledger, or none.

    Where another run has promoted since the challenger was judged, it is evaluated and gated against that champion
    before the next try, promotion.max_tries in all; only then does this step load images and networks. With
    decision.mode manual it only verifies the challenger's files: retrain approve promotes it.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        challenger: Version of the challenger.
        rung: Which attempt of the plan, from 1.
        verdict: The gate's word for it: promote.
        outcome: What happened, and why.

    Returns:
        promoted, waiting for approval in manual mode, or rejected or held where another run promoted first.
    """
    from components.core.contracts import Verdict
    from components.core.markdown import plain
    from components.core.rematches import Rematch
    from components.promote import step

    def judge_again(rematch: Rematch) -> Verdict:
        from components.evaluate import step as evaluate
        from components.gate import step as gate

        evaluate.run(config, run_id, window, challenger, rung, rematch)
        return gate.run(config, run_id, rung, rematch)

    told = step.promote(config, run_id, window, challenger, rung, judge_again)
    with open(outcome.path, "w") as file:
        file.write(plain(told.sentence))
    return told.word


@component
def record(config: str, run_id: str, window: str, word: str, rung: int, outcome: dsl.Output[dsl.Markdown]) -> str:
    """Write down why this run promotes nothing. The champion stays as it is.

    A challenger that was rejected or held is entered into the model's ledger, a window in quarantine under
    quarantine/ in the store; `retrain status` lists both.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        word: skip, quarantine, reject or hold.
        rung: The attempt that was judged; 0 where none was made.
        outcome: What happened, and why.

    Returns:
        skipped, quarantined, rejected or held.
    """
    from components.core.markdown import plain
    from components.promote import step

    told = step.record_outcome(config, run_id, window, word, rung)
    with open(outcome.path, "w") as file:
        file.write(plain(told.sentence))
    return told.word
