"""KFP doorway of the gate."""

from kfp import dsl

from components.core.component import component


@component
def gate(config: str, run_id: str, rung: int, evaluation: str, summary: dsl.Output[dsl.Markdown]) -> str:
    """Say whether the challenger may replace the champion: nothing may have regressed.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        rung: Which attempt of the plan, from 1.
        evaluation: The word of the evaluation that is judged.
        summary: Every check with its figure, its bound and its threshold.

    Returns:
        promote, escalate (a stronger strategy is left to try), reject or hold (more labelled images would decide).
    """
    from components.gate import step

    verdict = step.run(config, run_id, rung)
    with open(summary.path, "w") as file:
        file.write(verdict.markdown)
    return verdict.word
