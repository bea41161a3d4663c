"""What a step's pod gets: configuration, credentials, CPU, memory, GPU, shared memory, time.

The local runner ignores all of it. Caching is off everywhere: its key knows neither the data behind a URI nor the code
in the image, and on the backend a branch of which every task is cached never completes.
"""

from __future__ import annotations

from kfp import dsl, kubernetes

from components.core.component import IMAGE

CONFIG_MAP, CONFIG_FOLDER = "retrain-config", "/etc/retrain"  # the ConfigMap's key config.yaml is the default `config`
CACHE_FOLDER = "/var/cache/retrain"
SECRET = "retrain-store"  # noqa: S105  # optional: a service account with rights to the bucket does without
CREDENTIALS = {name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
SIGNING_SECRET, SIGNING_FOLDER = "retrain-signing", "/etc/retrain-signing"  # promotion.signing_key names a file there
WEBHOOK_SECRET = "retrain-webhook"  # noqa: S105  # signs events, and opens the MLflow mirror
METRICS_PORT = "9090"  # where a training answers /metrics while it runs
HOUR = 3600


def light(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """A step that reads and writes documents."""
    return _pod(task, name, cpu="500m", memory_request="1Gi", memory_limit="4Gi", hours=1)


def heavy(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """A step that reads images of a window, or handles a whole network, on the CPU."""
    return _with_cache(_pod(task, name, cpu="2", memory_request="4Gi", memory_limit="16Gi", hours=6))


def promoting(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """The step that exports and signs the model: the only one that sees the key, where there is one."""
    return kubernetes.use_secret_as_volume(heavy(task, name), SIGNING_SECRET, SIGNING_FOLDER, optional=True)


def telling(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """The step that tells others: the only one that sees the secrets for it, where there are any."""
    secrets = ("RETRAIN_WEBHOOK_SECRET", "MLFLOW_TRACKING_TOKEN")
    return kubernetes.use_secret_as_env(light(task, name), WEBHOOK_SECRET, {s: s for s in secrets}, optional=True)


def on_gpu(task: dsl.PipelineTask, name: str, gpu_type: str, gpu_count: str) -> dsl.PipelineTask:
    """The step that trains: GPU by run parameter (no type: CPU), room for data loaders in /dev/shm.

    `gpu_count` is a string: the 2.17 backend reads it with GetStringValue() and drops an integer silently.
    """
    _with_cache(_pod(task, name, cpu="2", memory_request="4Gi", memory_limit="32Gi", hours=24))
    task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
    task.set_env_variable("RETRAIN_METRICS_PORT", METRICS_PORT)
    for taint in ("nvidia.com/gpu", "amd.com/gpu"):
        kubernetes.add_toleration(task, key=taint, operator="Exists", effect="NoSchedule")
    return kubernetes.empty_dir_mount(
        task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit="4Gi"
    )


def _with_cache(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Room on the node's disk for decoded images and half-done ingests; it outlives the container, not the pod."""
    task.set_env_variable("XDG_CACHE_HOME", CACHE_FOLDER)
    return kubernetes.empty_dir_mount(task, volume_name="cache", mount_path=CACHE_FOLDER, size_limit="100Gi")


def _pod(
    task: dsl.PipelineTask, name: str, *, cpu: str, memory_request: str, memory_limit: str, hours: int
) -> dsl.PipelineTask:
    """Every pod: what the UI calls it, where the configuration is, who it is to the store, and a timeout of its own
    (one of the whole run would kill the exit task too)."""
    task.set_display_name(name)
    task.set_caching_options(False)
    task.set_env_variable("RETRAIN_IMAGE", IMAGE)  # for the provenance of what it makes
    task.set_cpu_request(cpu).set_memory_request(memory_request).set_memory_limit(memory_limit)
    kubernetes.use_config_map_as_volume(task, CONFIG_MAP, CONFIG_FOLDER)
    kubernetes.use_secret_as_env(task, SECRET, CREDENTIALS, optional=True)
    return kubernetes.set_timeout(task, hours * HOUR)
