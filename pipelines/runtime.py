"""What a step's pod gets: CPU, memory, GPU, shared memory, time. The local runner ignores all of it.

Caching is off everywhere: its key knows neither the data behind a URI nor the code in the image, and on the backend a
branch of which every task is cached never completes.
"""

from __future__ import annotations

from kfp import dsl, kubernetes

GPU_TAINT = "nvidia.com/gpu"
MINUTE, HOUR = 60, 3600


def on_cpu(task: dsl.PipelineTask, *, memory: str = "4Gi", seconds: int = 30 * MINUTE) -> dsl.PipelineTask:
    """A light step. Every task has a timeout of its own: a deadline of the whole run would kill the exit task too."""
    task.set_caching_options(False).set_cpu_request("500m").set_memory_request("1Gi").set_memory_limit(memory)
    return kubernetes.set_timeout(task, seconds)


def on_gpu(task: dsl.PipelineTask, gpu_type: str, gpu_count: str) -> dsl.PipelineTask:
    """The step that trains: GPU by run parameter (no type: CPU), tolerated taint, room for data loaders in /dev/shm.

    `gpu_count` is a string: the 2.17 backend reads it with GetStringValue() and drops an integer silently.
    """
    task.set_caching_options(False).set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
    task.set_cpu_request("2").set_memory_request("4Gi").set_memory_limit("32Gi")
    kubernetes.add_toleration(task, key=GPU_TAINT, operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit="4Gi")
    return kubernetes.set_timeout(task, 6 * HOUR)
