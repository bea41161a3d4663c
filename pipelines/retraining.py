"""THE GRAPH: from new images to a new champion, or to the reason why not.

retrain
└ ExitHandler(report)
  ingest → validate → detect_drift → decide ─ train | skip | quarantine
  If train: attempt(1)   Else: record

attempt(rung)
  train[GPU] → evaluate → gate ─ promote | escalate | reject | hold
  If promote: promote   Elif escalate: attempt(rung + 1)   Else: record
"""

from kfp import dsl

from components.core.config import MAX_RUNGS
from components.decide.component import decide
from components.detect_drift.component import detect_drift
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.ingest.component import ingest
from components.promote.component import promote, record
from components.report.component import report
from components.train.component import train
from components.validate.component import validate
from pipelines.runtime import heavy, light, on_gpu, promoting, telling

RUN = dsl.PIPELINE_JOB_ID_PLACEHOLDER  # passed whole, never inside a longer string: the backend replaces nothing else


def attempt(config: str, window: str, gpu_type: str, gpu_count: str, rung: int = 1) -> None:
    """Train, judge, then promote, climb to the next rung, or record. A plain function, called while kfp traces."""
    at = {"config": config, "run_id": RUN, "rung": rung}
    which = f" (attempt {rung})" if rung > 1 else ""
    # What sets the pod's resources is an argument too: the compiler does not hand down what only set_* calls use.
    training = train(**at, window=window, gpu_type=gpu_type, gpu_count=gpu_count)
    trained = on_gpu(training, f"Train{which}", gpu_type, gpu_count)
    challenger = trained.outputs["Output"]
    evaluated = heavy(evaluate(**at, window=window, challenger=challenger), f"Evaluate{which}")
    verdict = light(gate(**at, evaluation=evaluated.outputs["Output"]), f"Gate{which}").outputs["Output"]
    with dsl.If(verdict == "promote", name="no-regression"):
        # Heavy: where another run promotes first, it evaluates and gates against the new champion.
        promoting(promote(**at, window=window, challenger=challenger, verdict=verdict), f"Promote{which}")
    if rung < MAX_RUNGS:
        with dsl.Elif(verdict == "escalate", name="escalate"):
            attempt(config, window, gpu_type, gpu_count, rung + 1)
    with dsl.Else(name="not-promoted"):
        light(record(**at, window=window, word=verdict), f"Record why not{which}")


@dsl.pipeline(name="retrain", description="New images in; a new champion out, or the reason why not.")
def retrain(
    source: str = "new",
    config: str = "/etc/retrain/config.yaml",
    strategy: str = "auto",
    gpu_type: str = "",
    gpu_count: str = "1",
) -> None:
    """Retrain an image classifier on newly arrived images, if that helps and nothing regresses.

    Args:
        source: new takes what was delivered below trigger.source and no run has taken; or an s3:// prefix of class
            folders, WebDataset tars or Parquet files, or one .csv, .parquet or .tar there (the store's credentials must
            be able to read it); or the id of a window in the store; or batch:N, what a claim took (retrain status).
        config: Path of the configuration file, as the pods see it.
        strategy: auto lets the policy decide; a name forces one: fine-tune, distil, retrain, ... (see retrain config);
            plan:DIGEST carries out a plan of retrain plan.
        gpu_type: Resource name of the GPU for training, such as nvidia.com/gpu; empty trains on the CPU.
        gpu_count: How many GPUs the training pod gets; it uses all of them.
    """
    run = {"config": config, "run_id": RUN}
    with dsl.ExitHandler(telling(report(**run), "Report"), name="window-to-champion"):
        window = heavy(ingest(**run, source=source, strategy=strategy), "Ingest").outputs["Output"]
        validation = light(validate(**run, window=window), "Validate").outputs["Output"]
        drift = heavy(detect_drift(**run, window=window, validation=validation), "Detect drift").outputs["Output"]
        action = light(decide(**run, window=window, validation=validation, drift=drift), "Decide").outputs["Output"]
        with dsl.If(action == "train", name="train"):
            attempt(config, window, gpu_type, gpu_count)
        with dsl.Else(name="nothing-to-train"):
            light(record(**run, window=window, word=action, rung=0), "Record why not")
